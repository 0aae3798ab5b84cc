"""The client in `clients/python`: reconnects, resumes, token refreshes and errors."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from clients.python.herald_client import Herald, HeraldError, Options, earliest, expiry
from tests.support.clients import Client, token
from tests.support.signing import Signed

SOON = Options(first_pause=0.05, longest_pause=0.1, timeout=5.0)
SECONDS = 10.0


@asynccontextmanager
async def server(handle: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """Run a server that can break the protocol. Yields its URL."""
    async with serve(handle, "127.0.0.1", 0, subprotocols=["herald.v1"]) as serving:  # type: ignore[list-item]
        yield f"ws://127.0.0.1:{serving.sockets[0].getsockname()[1]}"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def first(herald: Herald, count: int) -> list[Any]:
    """Return the data of the next `count` messages."""
    found: list[Any] = []
    async with asyncio.timeout(SECONDS):
        async for message in herald:
            found.append(message["data"])
            if len(found) == count:
                break
    return found


def close(herald: Client, connection_id: str) -> None:
    """Close a connection from the server's side."""
    url = f"{herald.running.management}/@connections/{connection_id}"
    response = herald.http.delete(url, auth=Signed(herald.running.aws))
    assert response.status_code == 204


def test_a_message_is_sent_reported_and_received(herald: Client) -> None:
    async def run() -> None:
        url = herald.running.websocket
        async with Herald(url, token("pat")) as pat, Herald(url, token("ron")) as ron:
            report = await pat.send({"to": {"users": ["ron"]}, "data": {"text": "Hi"}})
            assert (report["recipients"], report["delivered"]) == (1, 1)
            assert "ref" not in report
            assert await first(ron, 1) == [{"text": "Hi"}]
            assert await ron.ping() < SECONDS

    asyncio.run(run())


def test_an_error_has_the_code_of_the_refusal(herald: Client) -> None:
    async def run() -> None:
        async with Herald(herald.running.websocket, token("pat", "ws:connect")) as pat:
            with pytest.raises(HeraldError, match="scope") as refused:
                await pat.send({"to": {"users": ["ron"]}, "data": 1})
            assert refused.value.code == "forbidden"
            with pytest.raises(HeraldError) as wrong:
                await pat.join("no-group-of-mine")
            assert wrong.value.details["type"] == "error"

    asyncio.run(run())


def test_groups_are_joined_and_left(herald: Client) -> None:
    async def run() -> None:
        url, mine = herald.running.websocket, token("pat", groups=["den-*"])
        to_group = {"to": {"groups": ["den-1"]}, "data": 1}
        async with Herald(url, mine) as pat:
            await pat.join("den-1")
            assert (await pat.send(to_group))["delivered"] == 1
            await pat.leave("den-1")
            assert (await pat.send(to_group))["recipients"] == 0

    asyncio.run(run())


def test_the_client_reconnects_when_the_connection_breaks(herald: Client) -> None:
    def ids(user: str) -> list[str]:
        return [item["connectionId"]["S"] for item in herald.connections(user)]

    async def run() -> None:
        async with Herald(herald.running.websocket, token("rita"), SOON) as rita:
            before = herald.connection_id("rita")
            await asyncio.to_thread(close, herald, before)
            await until(lambda: ids("rita") not in ([], [before]) and rita.connected)
            await until(lambda: before not in ids("rita"))
            await asyncio.to_thread(herald.report, {"users": ["rita"]}, "again")
            assert await first(rita, 1) == ["again"]

    asyncio.run(run())


def test_no_message_is_lost_while_the_client_reconnects(herald_with: Callable[..., Client]) -> None:
    """Cut the connection at random moments. One group is the token's, another one is joined."""
    herald = herald_with(HERALD_CONNECT_RATE="6000", HERALD_MAX_CONNECTIONS_PER_USER="1000")
    chance = random.Random(7)
    count = 60

    async def run() -> int:
        mine = token("rita", groups=["team", "room-*"])
        async with Herald(herald.running.websocket, mine, SOON) as rita:
            await rita.join("room-1")
            await until(lambda: rita._clock_offset is not None)
            cuts = 0
            for number in range(count):
                to = chance.choice(
                    [
                        {"users": ["rita"]},
                        {"groups": ["team"]},
                        {"groups": ["room-1"]},
                        {"all": True},
                    ]
                )
                await asyncio.to_thread(herald.report, to, number)
                if chance.random() < 0.3 and rita._socket is not None:
                    rita._socket.transport.abort()
                    cuts += 1
                await asyncio.sleep(chance.choice([0, 0, 0.05, 0.2]))
            assert await first(rita, count) == list(range(count))
            assert rita.gaps == 0
            return cuts

    assert asyncio.run(run()) > 5


def test_messages_that_arrive_during_a_resume_are_held_back_until_it_succeeds() -> None:
    """The first resume is refused, and repeated from the same message."""
    asked: list[Any] = []

    async def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        if len(connections) == 1:
            await connection.send(frame("B"))
        async for text in connection:
            request = json.loads(text)
            asked.append(request)
            answer = {"type": "pong", "timestamp": 0}
            if request["action"] == "resume":
                await connection.send(frame("E"))
                await connection.send(frame("C", "B"))
                answer = {"type": "error", "code": "unavailable", "message": "", "retryAfterMs": 1}
                if len(asked) > 2:
                    await connection.send(frame("D"))
                    answer = {"type": "resumed", "count": 2, "complete": False}
            await connection.send(json.dumps({**answer, "ref": request["ref"]}))

    def frame(*ids: str) -> str:
        messages = [{"id": one, "data": one} for one in ids]
        return json.dumps({"type": "messages", "messages": messages})

    async def run() -> None:
        async with server(handle) as url, Herald(url, "-", SOON) as herald:
            assert await first(herald, 1) == ["B"]
            await until(lambda: asked)
            await connections[0].close()
            assert await first(herald, 3) == ["C", "D", "E"]
            assert herald.gaps == 1
            resumes = [(one["action"], one["after"]) for one in asked[1:]]
            assert resumes == [("resume", "B"), ("resume", "B")]

    connections: list[ServerConnection] = []
    asyncio.run(run())


class Unlucky(Herald):
    """A client whose first resume finds that the connection is lost."""

    resumes = 0

    async def _ask(self, frame: Any, seconds: float | None = None) -> Any:
        if frame["action"] == "resume":
            self.resumes += 1
            if self.resumes == 1:
                raise HeraldError("disconnected", "the connection is lost")
        return await super()._ask(frame, seconds)


def test_a_resume_is_repeated_when_the_connection_is_lost_meanwhile(
    herald: Client,
) -> None:
    async def run() -> None:
        async with Unlucky(herald.running.websocket, token("uma"), SOON) as uma:
            await until(lambda: uma._clock_offset is not None)
            assert uma._socket is not None
            uma._socket.transport.abort()
            for number in range(3):
                await asyncio.to_thread(herald.report, {"users": ["uma"]}, number)
            assert await first(uma, 3) == [0, 1, 2]
            await until(lambda: uma._held is None)
            assert (uma.resumes, uma.gaps) == (2, 0)

    asyncio.run(run())


def test_a_client_without_messages_resumes_from_the_time_of_the_disconnect(herald: Client) -> None:
    async def run() -> None:
        async with Herald(herald.running.websocket, token("quiet"), SOON) as quiet:
            await until(lambda: quiet._clock_offset is not None)
            before = time.time()
            await asyncio.sleep(0.1)
            await asyncio.to_thread(close, herald, herald.connection_id("quiet"))
            await until(lambda: quiet._after)
            assert earliest(before) < quiet._after < earliest(time.time() + 1)

    asyncio.run(run())


@pytest.mark.parametrize("code", ["forbidden", "bad_request"])
def test_a_group_that_is_refused_after_a_reconnect_does_not_stop_the_resume(code: str) -> None:
    asked: list[str] = []

    async def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        async for text in connection:
            request = json.loads(text)
            asked.append(request["action"])
            answer = {"type": "joined", "timestamp": 1}
            if request["action"] == "join" and len(connections) > 1:
                answer = {"type": "error", "code": code, "message": "no"}
            if request["action"] == "resume":
                answer = {"type": "resumed", "complete": True}
            await connection.send(json.dumps({**answer, "ref": request["ref"]}))

    async def run() -> None:
        async with server(handle) as url, Herald(url, "-", SOON) as herald:
            await herald.join("room")
            await until(lambda: herald._clock_offset is not None)
            await connections[0].close()
            await until(lambda: herald._held is None and len(connections) > 1)
            assert asked[-2:] == ["join", "resume"]
            assert herald._groups == {}
            assert herald.gaps == 0

    connections: list[ServerConnection] = []
    asyncio.run(run())


def test_a_pending_request_fails_when_the_connection_closes(herald: Client) -> None:
    async def run() -> None:
        async def mute(connection: ServerConnection) -> None:
            await connection.recv()
            await connection.close()

        async with server(mute) as url, Herald(url, "-", SOON) as herald:
            with pytest.raises(HeraldError) as lost:
                await herald.send({"to": {"all": True}, "data": 1})
            assert lost.value.code == "disconnected"

    asyncio.run(run())


def test_pings_keep_a_connection_from_being_idle(herald_with: Callable[..., Client]) -> None:
    herald = herald_with(GATEWAY_IDLE_TIMEOUT_SECONDS="0.6")

    async def run() -> None:
        active = Options(ping_every=0.1)
        async with Herald(herald.running.websocket, token("pat"), active) as pat:
            before = herald.connection_id("pat")
            await asyncio.sleep(1.5)
            assert pat.connected
            assert herald.connection_id("pat") == before

    asyncio.run(run())


def test_a_connection_whose_pings_are_not_answered_is_replaced() -> None:
    async def run() -> None:
        opened = 0

        async def mute(connection: ServerConnection) -> None:
            nonlocal opened
            opened += 1
            with suppress(Exception):
                await connection.wait_closed()

        options = Options(ping_every=0.05, timeout=0.2, first_pause=0.05)
        async with server(mute) as url, Herald(url, "-", options):
            await until(lambda: opened >= 3)

    asyncio.run(run())


def test_a_token_is_refreshed_before_it_expires(herald: Client) -> None:
    async def run() -> None:
        asked = 0

        async def fetch() -> str:
            nonlocal asked
            asked += 1
            return token("tess", exp=int(time.time()) + (3 if asked == 1 else 600))

        async with Herald(herald.running.websocket, fetch) as tess:
            [before] = herald.connections("tess")
            await until(lambda: herald.connections("tess")[0]["tokenUntil"] != before["tokenUntil"])
            [after] = herald.connections("tess")
            assert after["connectionId"] == before["connectionId"]
            assert int(after["tokenUntil"]["N"]) > int(before["tokenUntil"]["N"]) + 500
            assert tess.connected
            assert asked == 2

    asyncio.run(run())


def test_a_message_that_arrives_twice_is_returned_once() -> None:
    async def run() -> None:
        def frame(*ids: str) -> str:
            return json.dumps({"type": "messages", "messages": [{"id": i, "data": i} for i in ids]})

        async def twice(connection: ServerConnection) -> None:
            for text in (frame("a", "b"), frame("b", "a", "c"), frame("d")):
                await connection.send(text)
            await connection.wait_closed()

        async with server(twice) as url, Herald(url, "-") as herald:
            assert await first(herald, 4) == ["a", "b", "c", "d"]

    asyncio.run(run())


def test_a_request_without_an_answer_times_out() -> None:
    async def run() -> None:
        async def mute(connection: ServerConnection) -> None:
            await connection.wait_closed()

        async with server(mute) as url, Herald(url, "-", Options(timeout=0.1)) as herald:
            with pytest.raises(HeraldError, match="no answer to send") as late:
                await herald.send({"to": {"all": True}, "data": 1})
            assert late.value.code == "timeout"

    asyncio.run(run())


def test_a_fixed_token_that_is_refused_is_not_retried(herald: Client) -> None:
    async def run() -> None:
        with pytest.raises(HeraldError, match="answered 401") as refused:
            await Herald(herald.running.websocket, "nonsense", SOON).connect()
        assert refused.value.code == "refused"

    asyncio.run(run())


def test_a_token_function_is_called_again_after_a_refusal(herald: Client) -> None:
    async def run() -> None:
        tokens = iter(["nonsense", token("pat")])
        async with Herald(herald.running.websocket, lambda: next(tokens), SOON) as pat:
            assert pat.connected

    asyncio.run(run())


def test_a_token_function_that_fails_is_called_again(herald: Client) -> None:
    async def run() -> None:
        asked = 0

        async def fetch() -> Any:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise LookupError("the identity provider is down")
            return {"token": "-"} if asked == 2 else token("pat")

        async with Herald(herald.running.websocket, fetch, SOON) as pat:
            assert pat.connected
            assert asked == 3

    asyncio.run(run())


def test_a_failed_token_refresh_does_not_end_the_connection(herald: Client) -> None:
    async def run() -> None:
        tokens = iter([token("vera", exp=int(time.time()) + 3)])

        async with Herald(herald.running.websocket, lambda: next(tokens), SOON) as vera:
            await asyncio.sleep(2.2)  # the refresh failed after two thirds of its lifetime
            assert await vera.ping() < SECONDS

    asyncio.run(run())


def test_notices_are_separate_from_messages() -> None:
    async def run() -> None:
        notice = {"type": "notice", "code": "connection_removed", "reason": "x"}

        async def tell(connection: ServerConnection) -> None:
            await connection.send(json.dumps(notice))
            await connection.wait_closed()

        async with server(tell) as url, Herald(url, "-") as herald:
            assert await asyncio.wait_for(herald.notices.get(), SECONDS) == notice

    asyncio.run(run())


def test_a_client_that_is_cancelled_while_it_connects_leaves_no_task() -> None:
    async def enter() -> None:
        async with Herald("ws://127.0.0.1:9", token("pat"), SOON):  # nothing listens there
            pass

    async def run() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(enter(), 0.2)
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(run())


def test_iteration_ends_when_the_client_is_closed(herald: Client) -> None:
    async def run() -> None:
        pat = Herald(herald.running.websocket, token("pat"))
        await pat.connect()
        await pat.close()
        assert [message async for message in pat] == []
        with pytest.raises(HeraldError) as closed:
            await pat.ping()
        assert closed.value.code == "disconnected"

    asyncio.run(run())


def test_the_expiry_is_read_from_the_token() -> None:
    assert expiry(token(exp=1_900_000_000)) == 1_900_000_000
    for nonsense in ("", "a.b", "a.e30.c"):
        assert expiry(nonsense) is None


@pytest.mark.parametrize("text", ["<html>", "7", "[1]", "[]", "{}", "null", '{"type": null}', ""])
def test_an_invalid_frame_is_logged_and_does_not_raise(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Proxies between the client and API Gateway can send anything."""
    Herald("ws://127.0.0.1:9", "token")._receive(text)
    assert caplog.messages
