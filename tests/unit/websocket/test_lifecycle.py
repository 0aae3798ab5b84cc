"""Opening and removing connections. `test_connection_lifecycles.py` tries every interleaving."""

import json
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from chalicelib.auth.principal import Principal, Scope
from chalicelib.errors import (
    BadRequest,
    Forbidden,
    InsufficientScope,
    RateLimited,
    TooManyConnections,
    Unauthorized,
    Unavailable,
)
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.connections import MAX_GROUPS
from chalicelib.websocket.event import WebSocketEvent
from tests.support.clients import token
from tests.support.tables import Counted, empty, scan
from tests.support.world import (
    LIFE,
    LIMIT,
    NEVER,
    SCOPES,
    SECRET,
    Herald,
    Socket,
    World,
)


@pytest.fixture
def world(life: Any) -> World:
    empty(life, LIFE)
    return World()


@pytest.fixture
def herald(life: Any, world: World) -> Herald:
    return Herald(life, world)


def event_without_authorizer(socket: Socket, **headers: str) -> WebSocketEvent:
    """Return the socket's event as it comes if no authorizer is attached."""
    context = {
        "connectionId": socket.connection_id,
        "connectedAt": socket.connected_at,
        "domainName": "example.com",
        "stage": "prod",
        "identity": {"sourceIp": "127.0.0.1"},
    }
    return WebSocketEvent({"requestContext": context, "headers": headers})


def connected(herald: Herald, world: World, user: str) -> Socket:
    socket = world.connect(user)
    herald.lifecycle.on_connect(socket.event())
    socket.state = "open"
    return socket


def online(herald: Herald, user: str) -> list[str]:
    return [one.connection_id for one in herald.users.presence(None, user).connections]


def test_a_connection_is_stored_with_the_plain_groups_of_its_token(
    herald: Herald, world: World, user: str
) -> None:
    socket = connected(herald, world, user)
    stored = herald.connections.find(socket.connection_id)
    assert stored is not None
    assert stored.groups == {"team"}
    assert stored.endpoint == "https://example.com/prod"
    assert online(herald, user) == [socket.connection_id]


def test_a_handshake_without_an_authorizer_needs_a_token(
    herald: Herald, world: World, user: str
) -> None:
    socket = world.connect(user)
    for headers in ({}, {"Authorization": f"Bearer {token(user, key='another' * 8)}"}):
        with pytest.raises(Unauthorized):
            herald.lifecycle.on_connect(event_without_authorizer(socket, **headers))
    good = {"Authorization": f"Bearer {token(user, key=SECRET)}"}
    herald.lifecycle.on_connect(event_without_authorizer(socket, **good))
    assert online(herald, user) == [socket.connection_id]


def test_a_token_that_names_too_many_groups_is_refused(
    herald: Herald, world: World, user: str
) -> None:
    groups = [f"group-{number}" for number in range(MAX_GROUPS + 1)]
    bearer = f"Bearer {token(user, key=SECRET, groups=groups)}"
    with pytest.raises(BadRequest, match="groups"):
        herald.lifecycle.on_connect(
            event_without_authorizer(world.connect(user), Authorization=bearer)
        )


def test_a_handshake_needs_the_scope(herald: Herald, world: World, user: str) -> None:
    bearer = f"Bearer {token(user, 'messages:send', key=SECRET)}"
    with pytest.raises(InsufficientScope):
        herald.lifecycle.on_connect(
            event_without_authorizer(world.connect(user), Authorization=bearer)
        )


def test_the_subprotocol_is_returned_to_be_echoed(herald: Herald, world: World, user: str) -> None:
    offered = {"sec-websocket-protocol": "herald.v1"}
    context = world.connect(user).event()._context
    event = WebSocketEvent({"requestContext": context, "headers": offered})
    assert herald.lifecycle.on_connect(event) == "herald.v1"


def test_a_disconnect_removes_the_connection_and_may_come_twice(
    herald: Herald, world: World, user: str
) -> None:
    socket = connected(herald, world, user)
    for _ in range(2):
        herald.lifecycle.on_disconnect(socket.event())
        assert online(herald, user) == []


def test_a_disconnect_without_an_authorizer_finds_the_user_in_the_table(
    herald: Herald, world: World, user: str
) -> None:
    socket = connected(herald, world, user)
    for _ in range(2):
        herald.lifecycle.on_disconnect(event_without_authorizer(socket))
        assert online(herald, user) == []


def test_one_connection_too_many_is_refused(herald: Herald, world: World, user: str) -> None:
    for _ in range(LIMIT):
        connected(herald, world, user)
    with pytest.raises(TooManyConnections):
        herald.lifecycle.on_connect(world.connect(user).event())


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        ({"origin": "https://evil.example"}, Forbidden),
        ({"sec-websocket-protocol": "mqtt"}, BadRequest),
        ({"x-forwarded-for": "127.0.0.1"}, Forbidden),
        ({"authorization": "too many groups"}, BadRequest),
    ],
    ids=["origin", "subprotocol", "address", "groups"],
)
def test_a_refused_handshake_is_charged_and_costs_nothing_once_the_rate_is_used_up(
    life: Any, world: World, user: str, refused: dict[str, str], error: type[Exception]
) -> None:
    client: Any = Counted(life)
    others: dict[str, Any] = {"allowed_origins": ("https://app.example",), "connect_rate": 2}
    if "x-forwarded-for" in refused:
        others["ip_allow"] = (ip_network("10.0.0.0/8"),)
    if "authorization" in refused:
        groups = [f"group-{number}" for number in range(MAX_GROUPS + 1)]
        refused = {"authorization": f"Bearer {token(user, key=SECRET, groups=groups)}"}
    else:
        refused |= {"authorization": f"Bearer {token(user, key=SECRET)}"}
    herald = Herald(client, world, **others)
    for raised in (error, error, RateLimited, RateLimited):
        with pytest.raises(raised):
            herald.lifecycle.on_connect(event_without_authorizer(world.connect(user), **refused))
    assert client.calls == ["update_item"] * 2


def test_a_refusal_stands_while_storage_is_down(herald: Herald, world: World, user: str) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("down")

    herald.handshakes.charge = fail  # type: ignore[method-assign,assignment]
    event = world.connect(user).event()
    headers = {"sec-websocket-protocol": "mqtt"}
    with pytest.raises(BadRequest):
        herald.lifecycle.on_connect(
            WebSocketEvent({"requestContext": event._context, "headers": headers})
        )


@pytest.mark.parametrize("evicts", [False, True])
def test_an_attempt_is_charged_once_even_if_it_makes_room_first(
    life: Any, world: World, user: str, evicts: bool
) -> None:
    herald = Herald(life, world, evicts=evicts, connect_rate=LIMIT)
    for socket in [connected(herald, world, user) for _ in range(LIMIT)]:
        world.end(socket)
    world.now += 31_000  # when the handshakes have certainly ended, and a unit has come back
    connected(herald, world, user)
    with pytest.raises(RateLimited):
        herald.lifecycle.on_connect(world.connect(user).event())


def test_with_eviction_an_attempt_over_the_rate_evicts_nobody(
    life: Any, world: World, user: str
) -> None:
    herald = Herald(life, world, evicts=True, connect_rate=LIMIT)
    sockets = [connected(herald, world, user) for _ in range(LIMIT)]
    with pytest.raises(RateLimited):
        herald.lifecycle.on_connect(world.connect(user).event())
    assert {socket.state for socket in sockets} == {"open"}


def test_a_dead_connection_makes_room_for_a_new_one(
    herald: Herald, world: World, user: str
) -> None:
    dead, alive = (connected(herald, world, user) for _ in range(LIMIT))
    world.end(dead)
    world.now += 31_000  # when the handshakes have certainly ended
    new = connected(herald, world, user)
    assert set(online(herald, user)) == {alive.connection_id, new.connection_id}


# --- A handshake that is refused since storage failed leaves nothing behind


class Failing:
    """A DynamoDB client that fails once: `before` or `after` the call is carried out, or `late`.

    Such a late call is carried out when the test says so. With `always`, every later call fails.
    """

    def __init__(self, client: Any, when: str, *, call: int = 0, always: bool = False) -> None:
        """Fail in the call with this number."""
        self._client = client
        self._when = when
        self._calls_left = call
        self._always = always
        self.carry_out_late: Callable[[], Any] = lambda: None

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._client, operation)

        def failing(**parameters: Any) -> Any:
            self._calls_left -= 1
            if self._calls_left >= 0 or (self._calls_left < -1 and not self._always):
                return call(**parameters)
            if self._calls_left == -1 and self._when == "after":
                call(**parameters)
            if self._calls_left == -1 and self._when == "late":
                self.carry_out_late = partial(call, **parameters)
            raise ReadTimeoutError(endpoint_url="https://dynamodb.invalid")

        return failing


OPENING_CALLS = range(3)


def assert_nothing_is_left(life: Any, user: str) -> None:
    assert list(scan(life, LIFE.connections)) == []
    assert list(scan(life, LIFE.groups)) == []
    for item in scan(life, LIFE.users):
        if item["user"]["S"].startswith("sweep-"):
            continue
        assert item["user"] == {"S": f"/{user}"}
        assert "connections" not in item


@pytest.mark.parametrize("call", OPENING_CALLS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handshake_that_storage_fails_is_refused_and_leaves_nothing(
    life: Any, world: World, user: str, when: str, call: int
) -> None:
    socket = world.connect(user)
    with pytest.raises(Unavailable):
        Herald(Failing(life, when, call=call), world).lifecycle.on_connect(socket.event())
    assert_nothing_is_left(life, user)


def test_a_connection_is_not_tied_after_its_handshake_was_refused(
    life: Any, world: World, user: str
) -> None:
    client = Failing(life, "late", call=2)
    with pytest.raises(Unavailable):
        Herald(client, world).lifecycle.on_connect(world.connect(user).event())
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        client.carry_out_late()
    assert_nothing_is_left(life, user)


def test_an_item_that_is_stored_after_its_handshake_was_refused_is_found_by_the_sweep(
    life: Any, world: World, user: str
) -> None:
    client, socket = Failing(life, "late"), world.connect(user)
    with pytest.raises(Unavailable):
        Herald(client, world).lifecycle.on_connect(socket.event())
    socket.state = "refused"
    client.carry_out_late()
    assert online(Herald(life, world), user) == []  # it is not tied to its user
    world.now += 31_000  # when the handshake has certainly ended
    Herald(life, world).sweeper.sweep(Deadline.after(NEVER))
    assert_nothing_is_left(life, user)


def test_a_roster_entry_that_is_stored_after_its_handshake_was_refused_ends_with_its_first_message(
    life: Any, world: World, user: str
) -> None:
    client, socket = Failing(life, "late", call=1), world.connect(user)
    with pytest.raises(Unavailable):
        Herald(client, world).lifecycle.on_connect(socket.event())
    socket.state = "refused"
    client.carry_out_late()
    world.now += 31_000  # when the handshake has certainly ended
    sender = Principal(user, 10**12, scopes=SCOPES | {Scope.MESSAGES_BROADCAST})
    body = json.dumps({"to": {"all": True}, "data": 1})
    json_type = {"content-type": "application/json"}
    herald = Herald(life, world)
    herald.submissions.submit(sender, json_type, body, Deadline.after(NEVER))
    entries = [item["group"]["S"] for item in scan(life, LIFE.groups)]
    assert entries == ["/team"]  # DynamoDB's TTL removes it


def test_what_a_refused_handshake_leaves_while_storage_is_down_is_found_by_the_next_sweeps(
    life: Any, world: World, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = Failing(life, "after", always=True)
    socket = world.connect(user)
    with pytest.raises(Unavailable):
        Herald(client, world).lifecycle.on_connect(socket.event())
    socket.state = "refused"
    assert "the sweep has to remove what a refused handshake may have stored" in caplog.text
    herald = Herald(life, world)
    silent = connected(herald, world, user)
    world.now += 31_000  # when the handshakes have certainly ended
    herald.sweeper.sweep(Deadline.after(NEVER))
    assert online(herald, user) == [silent.connection_id]
    world.now, calls = world.now + 61_000, world.calls
    herald.sweeper.sweep(Deadline.after(NEVER))
    assert world.calls == calls  # the other connection has been probed once


def test_the_oldest_connection_is_evicted_where_the_policy_says_so(
    life: Any, world: World, user: str
) -> None:
    herald = Herald(life, world, evicts=True)
    sockets = []
    for _ in range(LIMIT + 1):
        world.now += 31_000
        sockets.append(connected(herald, world, user))
    assert online(herald, user) == [socket.connection_id for socket in sockets[1:]]
    assert sockets[0].state == "closed"
