"""Reads, charges and answers frames without sockets; `tests/integration` has the same over them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import Contended, Unavailable
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Status
from chalicelib.websocket.actions import MAX_REFUSED_FRAMES
from chalicelib.websocket.event import WebSocketEvent
from tests.support.clients import token
from tests.support.schemas import check_received
from tests.support.tables import Counted
from tests.support.world import NEVER, SECRET, Herald, Socket, World

LEAVE = {"action": "leave", "group": "elsewhere"}
"""A frame that is accepted, whatever was sent before it."""

PING = {"action": "ping"}
HEARTBEAT = {"action": "heartbeat"}


class Clients(World):
    """A world that keeps the frames which reach its clients."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Any] = []

    def arrive(self, connection_id: str, body: bytes) -> None:
        if body:
            self.frames.append(json.loads(body))
            check_received(self.frames[-1])


@pytest.fixture
def client(life: Any) -> Any:
    return Counted(life)


@pytest.fixture
def world() -> Clients:
    return Clients()


@pytest.fixture
def herald(client: Any, world: Clients) -> Herald:
    return Herald(client, world)


@pytest.fixture
def socket(herald: Herald, world: Clients, user: str) -> Socket:
    """An open connection of `user`."""
    socket = world.connect(user)
    herald.lifecycle.on_connect(socket.event())
    socket.state = "open"
    return socket


Ask = Callable[..., Any]


@pytest.fixture
def ask(client: Any, herald: Herald, world: Clients, socket: Socket) -> Ask:
    """Send a frame, and return the answer."""

    def ask(frame: Any, event: WebSocketEvent | None = None) -> Any:
        body = frame if isinstance(frame, str) else json.dumps(frame)
        client.calls.clear()
        herald.actions.receive(event or socket.event(body), Deadline.after(NEVER))
        return world.frames.pop()

    return ask


def event(socket: Socket, body: Any = None, *, expires_at: int | None) -> WebSocketEvent:
    """Return an event whose token expires then; None means that no authorizer had run."""
    context = {
        "connectionId": socket.connection_id,
        "connectedAt": socket.connected_at,
        "domainName": "example.com",
        "stage": "prod",
        "identity": {"sourceIp": "127.0.0.1"},
        "authorizer": expires_at and Principal(socket.user, expires_at).to_context(),
    }
    return WebSocketEvent({"requestContext": context, "body": json.dumps(body)})


@pytest.fixture
def expired(herald: Herald, world: Clients, user: str) -> tuple[Socket, int]:
    """An open connection whose token has expired, and when it did."""
    socket = world.connect(user)
    expires_at = world.now // 1000 + 10
    herald.lifecycle.on_connect(event(socket, expires_at=expires_at))
    socket.state = "open"
    world.now += 20_000
    return socket, expires_at


@pytest.mark.parametrize(
    ("frame", "names"),
    [
        ('{"ref": "r", "action": ', "not JSON"),
        ([], "object"),
        ({"action": "ping", "ref": 1}, "ref"),
        ({"action": "nope", "ref": "r"}, "action must be one of ping"),
        ({"action": "send", "data": 1, "ref": "r"}, "to is missing"),
    ],
)
def test_a_frame_that_cannot_be_read_is_charged_and_refused(
    ask: Ask, client: Any, frame: Any, names: str
) -> None:
    answer = ask(frame)
    assert (answer["type"], answer["code"]) == ("error", "bad_request")
    assert names in answer["message"]
    assert client.calls == ["update_item"] * 2  # charged, and counted


def test_an_error_has_the_ref_of_a_frame_as_soon_as_that_is_read(ask: Ask) -> None:
    assert ask({"action": "nope", "ref": "r"})["ref"] == "r"
    assert "ref" not in ask({"action": "ping", "ref": 1})
    assert ask({"action": "ping", "ref": ""})["ref"] == ""


@pytest.mark.parametrize("frame", [HEARTBEAT, LEAVE, {"action": "nope"}])
def test_a_client_whose_token_expired_is_told_so_and_closed(
    ask: Ask, herald: Herald, expired: tuple[Socket, int], frame: Any
) -> None:
    socket, expires_at = expired
    answer = ask(None, event(socket, frame, expires_at=expires_at))
    assert answer["code"] == "token_expired"
    assert socket.state == "closed"
    assert herald.connections.find(socket.connection_id) is None


def test_a_client_whose_token_expired_may_still_refresh_it(
    ask: Ask, expired: tuple[Socket, int]
) -> None:
    socket, expires_at = expired
    fresh = {"action": "refresh", "token": token(socket.user, key=SECRET, exp=10**10)}
    answer = ask(None, event(socket, fresh, expires_at=expires_at))
    assert answer == {"type": "refreshed", "expiresAt": 10**13}
    assert socket.state == "open"


def test_a_token_of_another_user_does_not_refresh(ask: Ask, user: str) -> None:
    answer = ask({"action": "refresh", "token": token(f"{user}-other", key=SECRET)})
    assert (answer["code"], answer["message"]) == (
        "forbidden",
        "the token belongs to another user",
    )


@pytest.mark.parametrize("frame", [HEARTBEAT, LEAVE, {"action": "nope"}])
@pytest.mark.parametrize("expires_at", [None, 10**10])
def test_a_client_whose_connection_was_removed_is_told_so_and_closed(
    ask: Ask, herald: Herald, socket: Socket, expires_at: int | None, frame: Any
) -> None:
    herald.lifecycle.on_disconnect(socket.event())
    answer = ask(None, event(socket, frame, expires_at=expires_at))
    assert (answer["type"], answer["code"]) == ("error", "unauthorized")
    assert socket.state == "closed"


def test_without_an_authorizer_the_table_says_whose_connection_it_is(
    ask: Ask, socket: Socket
) -> None:
    frame = {"action": "join", "group": "room-1"}
    answer = ask(None, event(socket, frame, expires_at=None))
    assert answer == {"type": "joined", "group": "room-1"}


def test_without_an_authorizer_the_table_is_read_once(
    ask: Ask, client: Any, world: Clients, socket: Socket
) -> None:
    for expected in (["get_item", "update_item"], ["update_item"]):
        assert ask(None, event(socket, HEARTBEAT, expires_at=None))["type"] == "heartbeat"
        world.now += 60_000
        assert client.calls == expected


def test_a_refresh_with_the_same_token_writes_nothing(
    ask: Ask, client: Any, socket: Socket
) -> None:
    fresh = {"action": "refresh", "token": token(socket.user, key=SECRET, exp=10**10)}
    for writes in (["transact_write_items"], []):
        assert ask(fresh) == {"type": "refreshed", "expiresAt": 10**13}
        assert client.calls == ["update_item", "get_item", *writes]


def test_only_a_refused_send_counts_as_a_rejected_message(
    ask: Ask, herald: Herald, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []
    monkeypatch.setattr(herald.metrics, "count", lambda name, **by: counted.append((name, by)))
    ask({"action": "join", "group": "elsewhere"})
    ask({"action": "nope"})
    assert counted == []
    ask({"action": "send", "data": 1})
    ask({"action": "send", "to": {"all": True}, "data": 1})
    assert counted == [
        ("MessagesRejected", {"Reason": "bad_request"}),
        ("MessagesRejected", {"Reason": "forbidden"}),
    ]


def test_a_bug_is_logged_and_answered_as_an_internal_error(
    ask: Ask, herald: Herald, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(herald.connections, "join", fail)
    answer = ask({"action": "join", "group": "room-1", "ref": "r"})
    assert answer == {
        "type": "error", "code": "internal", "ref": "r",
        "message": "Internal error. It has been logged.",
    }  # fmt: skip
    assert "secret" in caplog.text


# --- Pings and heartbeats


@pytest.mark.parametrize("expires_at", [None, 1, 10**10])
def test_a_ping_touches_no_table_and_charges_nothing(
    ask: Ask, client: Any, socket: Socket, expires_at: int | None
) -> None:
    ask(BAD)
    for _ in range(3):
        answer = ask(None, event(socket, {**PING, "ref": "r"}, expires_at=expires_at))
        assert (answer["type"], answer["ref"]) == ("pong", "r")
        assert client.calls == []


def test_a_heartbeat_writes_the_connections_own_item_and_is_its_activity(
    ask: Ask, client: Any, world: Clients, herald: Herald, socket: Socket
) -> None:
    world.now += 3_600_000
    assert ask({**HEARTBEAT, "ref": "r"}) == {
        "type": "heartbeat", "ref": "r", "timestamp": world.now,
    }  # fmt: skip
    assert client.calls == ["update_item"]
    found = herald.connections.find(socket.connection_id)
    assert found is not None
    assert found.timestamp == world.now
    presence = herald.users.presence(None, socket.user)
    assert presence.last_seen == world.now
    assert presence.connections == [found]


def test_a_heartbeat_makes_a_stale_connection_active(
    ask: Ask, world: Clients, herald: Herald, socket: Socket
) -> None:
    herald.connections.mark_stale(socket.connection_id, EpochMs(world.now))
    world.now += 1
    ask(HEARTBEAT)
    [one] = herald.users.presence(None, socket.user).connections
    assert one.status_at(EpochMs(world.now), 600) is Status.ACTIVE


def test_a_second_heartbeat_within_a_minute_is_refused_and_counted(
    ask: Ask, client: Any, world: Clients, herald: Herald, socket: Socket
) -> None:
    ask(HEARTBEAT)
    world.now += 59_000
    answer = ask(HEARTBEAT)
    assert (answer["code"], answer["retryAfterMs"]) == ("rate_limited", 1000)
    assert client.calls == ["update_item"]  # it counts the refused frame
    world.now += 1000
    assert ask(HEARTBEAT)["type"] == "heartbeat"
    world.now += 1
    elsewhere = Herald(client, world)
    for calls in (2, 1):  # it learns when the last heartbeat was
        client.calls.clear()
        elsewhere.actions.receive(socket.event(json.dumps(HEARTBEAT)), Deadline.after(NEVER))
        assert world.frames.pop()["code"] == "rate_limited"
        assert client.calls == ["update_item"] * calls


def test_a_heartbeat_whose_answer_was_lost_may_be_written_again(
    client: Any, world: Clients, socket: Socket
) -> None:
    """The SDK tries it again with the same time."""
    for _ in range(2):
        tried = Herald(client, world)
        tried.actions.receive(socket.event(json.dumps(HEARTBEAT)), Deadline.after(NEVER))
        assert world.frames.pop()["type"] == "heartbeat"


def test_a_flood_of_heartbeats_ends_its_connection(ask: Ask, socket: Socket) -> None:
    ask(HEARTBEAT)
    for _ in range(MAX_REFUSED_FRAMES):
        assert socket.state == "open"
        assert ask(HEARTBEAT)["code"] == "rate_limited"
    assert socket.state == "closed"


def test_a_heartbeat_is_charged_to_nobody(client: Any, world: Clients, socket: Socket) -> None:
    slow = Herald(client, world, message_rate=0.001, message_burst=1)
    for frame, code in ((LEAVE, None), (HEARTBEAT, None), (LEAVE, "rate_limited")):
        slow.actions.receive(socket.event(json.dumps(frame)), Deadline.after(NEVER))
        assert world.frames.pop().get("code") == code


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_heartbeat_notices_a_refreshed_token(
    ask: Ask, client: Any, world: Clients, herald: Herald, expired: tuple[Socket, int], where: str
) -> None:
    socket, expires_at = expired
    fresh = {"action": "refresh", "token": token(socket.user, key=SECRET, exp=10**10)}
    assert ask(None, event(socket, fresh, expires_at=expires_at))["type"] == "refreshed"
    environment = herald if where == "here" else Herald(client, world)
    for expected in (["update_item"] * (1 if where == "here" else 2), ["update_item"]):
        client.calls.clear()
        beat = event(socket, HEARTBEAT, expires_at=expires_at)
        environment.actions.receive(beat, Deadline.after(NEVER))
        assert world.frames.pop()["type"] == "heartbeat"
        assert client.calls == expected
        world.now += 60_000


# --- Frames that are refused in a row

BAD = {"action": "nope"}
FORBIDDEN = {"action": "join", "group": "elsewhere"}


@pytest.mark.parametrize("refused", [BAD, FORBIDDEN], ids=["unreadable", "forbidden"])
def test_a_connection_ends_with_the_error_of_the_100th_frame_refused_in_a_row(
    ask: Ask, herald: Herald, socket: Socket, caplog: pytest.LogCaptureFixture, refused: Any
) -> None:
    caplog.set_level("WARNING", "herald.actions")
    for _ in range(MAX_REFUSED_FRAMES - 1):
        assert ask(refused)["type"] == "error"
    assert ask(LEAVE)["type"] == "left"
    assert ask(PING)["type"] == "pong"
    for _ in range(MAX_REFUSED_FRAMES - 1):
        assert ask(refused)["type"] == "error"
    assert (socket.state, caplog.records) == ("open", [])
    assert ask(refused)["type"] == "error"
    assert socket.state == "closed"
    assert herald.connections.find(socket.connection_id) is None
    [record] = caplog.records
    logged = vars(record)
    assert (logged["connectionId"], logged["tenant"], logged["userId"]) == (
        socket.connection_id, None, socket.user,
    )  # fmt: skip


def test_a_connection_that_is_closed_for_refused_frames_is_counted(
    ask: Ask, herald: Herald, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    monkeypatch.setattr(herald.metrics, "count", lambda name, **_: counted.append(name))
    for _ in range(MAX_REFUSED_FRAMES):
        ask(BAD)
    assert counted == ["ConnectionsClosed"]


def test_a_flood_over_the_rate_costs_one_write_for_each_frame_until_it_is_closed(
    client: Any, world: Clients, socket: Socket
) -> None:
    """Each of three environments knows that the user's rate is used up."""
    slow: dict[str, Any] = {"message_rate": 0.001, "message_burst": 1}
    environments = [Herald(client, world, **slow) for _ in range(3)]

    def leave(number: int) -> Any:
        actions = environments[number % len(environments)].actions
        actions.receive(socket.event(json.dumps(LEAVE)), Deadline.after(NEVER))
        return world.frames.pop()

    for number in range(len(environments)):
        leave(number)
    known = len(environments) - 1  # of the refused frames so far
    client.calls.clear()
    for number in range(known, MAX_REFUSED_FRAMES):
        assert socket.state == "open"
        assert leave(number)["code"] == "rate_limited"
    assert socket.state == "closed"
    tombstone, finds = "update_item", "delete_item"  # it guesses that it is in no group
    removal = [tombstone, finds, "batch_write_item", "delete_item", "update_item"]
    assert client.calls == ["update_item"] * (MAX_REFUSED_FRAMES - known) + removal


def test_a_refused_frame_on_a_removed_connection_closes_its_socket(
    ask: Ask, herald: Herald, client: Any, world: Clients, socket: Socket
) -> None:
    limited = Herald(client, world, message_rate=0.001, message_burst=1)
    limited.actions.receive(socket.event(json.dumps(LEAVE)), Deadline.after(NEVER))
    herald.lifecycle.on_disconnect(socket.event())
    client.calls.clear()
    limited.actions.receive(socket.event(json.dumps(LEAVE)), Deadline.after(NEVER))
    assert world.frames.pop()["code"] == "unauthorized"
    assert socket.state == "closed"
    assert client.calls == ["update_item"]


@pytest.mark.parametrize("error", [Unavailable("down"), Contended("busy"), RuntimeError("a bug")])
def test_heralds_own_errors_are_not_counted_as_refused_frames(
    ask: Ask,
    client: Any,
    herald: Herald,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(herald.connections, "join", fail)
    ask({"action": "join", "group": "room-1"})
    assert client.calls == ["update_item", "get_item"]


@pytest.mark.parametrize("operation", ["count_refusal", "end_refusals"])
def test_a_count_that_storage_cannot_keep_changes_no_answer(
    ask: Ask, herald: Herald, socket: Socket, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("down")

    monkeypatch.setattr(herald.activity, operation, fail)
    assert ask(BAD)["code"] == "bad_request"
    assert ask(LEAVE)["type"] == "left"
    assert socket.state == "open"
