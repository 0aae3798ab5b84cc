"""When the Python client pings and sends heartbeats, on a clock that jumps to the next timer."""

import asyncio
import itertools
import json
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from clients.python import herald_client
from clients.python.herald_client import Herald, HeraldError

MINUTE = 60.0
PING, HEARTBEAT = 9.5 * MINUTE, 60 * MINUTE


class Jumping(asyncio.SelectorEventLoop):
    """An event loop that doesn't wait: it moves its clock to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        loop = self

        class Selector(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> Any:
                found = super().select(0)
                if not found and timeout:
                    loop.now += timeout
                return found

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


Answer = Callable[[Any], Any]


def answers(frame: Any) -> Any:
    """Answer as Herald does: a pong without a ref, everything else with it."""
    if frame["action"] == "ping":
        return {"type": "pong", "timestamp": "1700000000000"}
    return {"type": frame["action"], "ref": frame["ref"], "timestamp": 1_700_000_000_000}


class Server:
    """A server in the client's own process: it records when each frame came."""

    def __init__(self, loop: Jumping, answer: Answer) -> None:
        self.loop = loop
        self.answer = answer
        self.sent: list[tuple[float, str]] = []
        """The actions of the client's frames, in minutes since the first connection."""
        self.opened = 0
        self.aborted = False

    @property
    def minutes(self) -> float:
        return round((self.loop.now - 1000) / MINUTE, 1)

    @asynccontextmanager
    async def connect(self, *_: Any, **__: Any) -> AsyncIterator["Server"]:
        self.opened += 1
        self.aborted = False
        self.frames: asyncio.Queue[str | None] = asyncio.Queue()
        self.transport = SimpleNamespace(abort=self.abort)
        yield self

    def abort(self) -> None:
        self.aborted = True
        self.frames.put_nowait(None)

    async def send(self, text: str) -> None:
        frame = json.loads(text)
        self.sent.append((self.minutes, frame["action"]))
        answer = self.answer(frame)
        if answer is not None:
            self.deliver(answer)

    def deliver(self, frame: Any) -> None:
        self.frames.put_nowait(json.dumps(frame))

    async def __aiter__(self) -> AsyncIterator[str]:
        while (text := await self.frames.get()) is not None:
            yield text
        raise OSError("the connection broke")

    def actions(self, *actions: str) -> list[tuple[float, str]]:
        """Return the client's frames from its second one on, of some actions."""
        return [one for one in self.sent[1:] if not actions or one[1] in actions]


def run(
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Herald, Server], Coroutine[Any, Any, None]],
    answer: Answer = answers,
) -> Server:
    """Run a client of a server while `use` lasts. Returns the server."""
    loop = Jumping()
    server = Server(loop, answer)
    monkeypatch.setattr(herald_client, "connect", server.connect)
    clock = SimpleNamespace(monotonic=loop.time, time=loop.time)
    monkeypatch.setattr(herald_client, "time", clock)

    async def main() -> None:
        async with Herald("ws://nowhere", "-") as herald:
            await use(herald, server)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    return server


async def silence(_: Herald, __: Server) -> None:
    await asyncio.sleep(130 * MINUTE)


def test_a_silent_client_pings_after_nine_and_a_half_minutes_and_sends_a_heartbeat_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = run(monkeypatch, silence)
    assert server.sent[0] == (0.0, "ping")  # learns the server's clock
    assert server.opened == 1
    pings = [round(9.5 * number, 1) for number in range(1, 6)]
    assert server.actions() == [
        *((minute, "ping") for minute in pings),
        (57.0, "heartbeat"),
        *((minute + 57, "ping") for minute in pings),
        (114.0, "heartbeat"),
        (123.5, "ping"),
    ]


@pytest.mark.parametrize("direction", ["sent", "received"])
def test_traffic_in_either_direction_delays_the_ping(
    monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    async def use(herald: Herald, server: Server) -> None:
        await asyncio.sleep(9 * MINUTE)
        if direction == "sent":
            await herald.leave("room")
        else:
            server.deliver({"type": "messages", "messages": [{"id": "A"}]})
        await asyncio.sleep(10 * MINUTE)

    assert run(monkeypatch, use).actions("ping") == [(18.5, "ping")]


def test_a_client_that_only_receives_sends_a_heartbeat_after_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def use(_: Herald, server: Server) -> None:
        for number in range(125):
            await asyncio.sleep(MINUTE)
            server.deliver({"type": "messages", "messages": [{"id": f"{number:03}"}]})

    assert run(monkeypatch, use).actions() == [(60.0, "heartbeat"), (120.0, "heartbeat")]


def test_a_client_that_sends_needs_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(herald: Herald, _: Server) -> None:
        for _number in range(30):
            await asyncio.sleep(9 * MINUTE)
            await herald.leave("room")

    assert run(monkeypatch, use).actions("ping", "heartbeat") == []


@pytest.mark.parametrize("code", ["bad_request", "rate_limited"])
def test_a_refused_heartbeat_is_ignored(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def refuse(frame: Any) -> Any:
        if frame["action"] == "ping":
            return answers(frame)
        return {"type": "error", "code": code, "message": "no", "ref": frame["ref"]}

    server = run(monkeypatch, silence, refuse)
    assert server.opened == 1
    assert server.actions("heartbeat") == [(57.0, "heartbeat"), (114.0, "heartbeat")]


def test_a_heartbeat_without_an_answer_is_followed_by_a_ping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Functions may fail while API Gateway, which answers pings, is well."""

    def only_pongs(frame: Any) -> Any:
        return answers(frame) if frame["action"] == "ping" else None

    server = run(monkeypatch, silence, only_pongs)
    assert server.opened == 1
    assert (57.2, "ping") in server.sent  # ten seconds later


@pytest.mark.parametrize("silent", ["ping", "everything"])
def test_a_connection_without_a_pong_is_replaced_after_the_time_out(
    monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    def until_later(frame: Any) -> Any:
        late = len(server_frames) > 0
        server_frames.append(frame)
        return None if late and silent in ("everything", frame["action"]) else answers(frame)

    async def use(herald: Herald, server: Server) -> None:
        await asyncio.sleep(9.5 * MINUTE + 9)
        assert not server.aborted
        await asyncio.sleep(2)
        assert server.aborted or server.opened == 2

    server_frames: list[Any] = []
    run(monkeypatch, use, until_later)


def test_a_frame_that_arrives_instead_of_a_pong_shows_that_the_connection_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """API Gateway answers a throttled ping with an error that names no ping."""
    error = {"message": "Too Many Requests", "connectionId": "-", "requestId": "-"}
    first = itertools.count()

    def throttled(frame: Any) -> Any:
        return answers(frame) if next(first) == 0 else error

    async def use(_: Herald, __: Server) -> None:
        await asyncio.sleep(30 * MINUTE)

    server = run(monkeypatch, use, throttled)
    assert server.opened == 1
    assert len(server.actions("ping")) == 3


def test_concurrent_pings_are_each_answered_by_a_pong_without_a_ref(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def use(herald: Herald, _: Server) -> None:
        trips = await asyncio.gather(*(herald.ping() for _ in range(3)))
        assert set(trips) == {0}

    run(monkeypatch, use)


@pytest.mark.parametrize(
    ("timestamp", "known"),
    [
        ({"timestamp": 2_000_000}, True),
        ({"timestamp": "2000000"}, True),
        ({"timestamp": ""}, False),
        ({"timestamp": "$context.requestTimeEpoch"}, False),
        ({}, False),
    ],
)
def test_a_pong_may_lack_the_time_which_a_heartbeat_then_asks_for(
    monkeypatch: pytest.MonkeyPatch, timestamp: Any, known: bool
) -> None:
    def answer(frame: Any) -> Any:
        if frame["action"] == "heartbeat":
            return {"type": "heartbeat", "timestamp": 2_000_000, "ref": frame["ref"]}
        return {"type": "pong", **timestamp}

    async def use(herald: Herald, _: Server) -> None:
        await asyncio.sleep(1)
        assert herald._clock_offset == 2000 - 1000

    server = run(monkeypatch, use, answer)
    assert server.actions("heartbeat") == ([] if known else [(0.0, "heartbeat")])


def test_an_older_server_that_gives_no_time_at_all_is_served_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(frame: Any) -> Any:
        if frame["action"] == "ping":
            return {"type": "pong"}
        return {"type": "error", "code": "bad_request", "message": "no", "ref": frame["ref"]}

    async def use(herald: Herald, _: Server) -> None:
        await asyncio.sleep(1)
        assert herald.connected
        with pytest.raises(HeraldError, match="no"):
            await herald.leave("room")

    run(monkeypatch, use, answer)
