"""The number of DynamoDB calls for each event or request, which determines the bill."""

import json
from typing import Any

import pytest

from chalicelib.auth.principal import Principal
from chalicelib.runtime.deadlines import Deadline
from tests.support.tables import Counted
from tests.support.world import LIMIT, SCOPES, Herald, Socket, World

JSON = {"content-type": "application/json"}
DEADLINE = 1000.0


@pytest.fixture
def client(life: Any) -> Any:
    return Counted(life)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def herald(client: Any, world: World) -> Herald:
    return Herald(client, world, evicts=False)


def connected(herald: Herald, world: World, user: str) -> Socket:
    """Return the open socket of a user who has just connected."""
    socket = world.connect(user)
    herald.lifecycle.on_connect(socket.event())
    socket.state = "open"
    return socket


def say(herald: Herald, socket: Socket, **frame: object) -> None:
    herald.actions.receive(socket.event(json.dumps(frame)), Deadline.after(DEADLINE))


def test_connecting_takes_three_calls_and_disconnecting_four_from_a_group(
    client: Any, herald: Herald, world: World, user: str
) -> None:
    socket = connected(herald, world, user)
    assert client.calls == ["put_item", "batch_write_item", "update_item"]
    world.now += 31_000  # when the handshake has certainly ended
    client.calls.clear()
    herald.lifecycle.on_disconnect(socket.event())
    assert client.calls == ["get_item", "batch_write_item", "delete_item", "update_item"]


def test_a_ping_takes_one_call(client: Any, herald: Herald, world: World, user: str) -> None:
    socket = connected(herald, world, user)
    for _ in range(3):
        client.calls.clear()
        say(herald, socket, action="ping")
        assert len(client.calls) == 1


def test_sending_to_two_users_takes_three_calls(
    client: Any, herald: Herald, world: World, user: str
) -> None:
    socket = connected(herald, world, user)
    client.calls.clear()
    say(herald, socket, action="send", to={"users": ["x", "y"]}, data=1)
    assert client.calls == ["transact_write_items", "batch_write_item", "batch_get_item"]


def test_disconnecting_takes_four_calls_after_a_join_and_three_without_an_item(
    client: Any, herald: Herald, world: World, user: str
) -> None:
    socket = connected(herald, world, user)
    say(herald, socket, action="join", group="room-1")
    world.now += 31_000  # when the handshake has certainly ended
    for calls in (4, 3):
        client.calls.clear()
        herald.lifecycle.on_disconnect(socket.event())
        assert len(client.calls) == calls


@pytest.mark.parametrize(("users", "reads"), [(1, 1), (100, 1), (101, 2), (250, 3)])
@pytest.mark.parametrize("connections", [0, LIMIT])
def test_a_post_to_users_takes_one_read_per_hundred(
    client: Any, herald: Herald, world: World, user: str, users: int, reads: int, connections: int
) -> None:
    names = [f"{user}-{number}" for number in range(users)]
    for name in names[:20]:
        for _ in range(connections):
            connected(herald, world, name)
    client.calls.clear()

    sender = Principal(user, 10**12, scopes=SCOPES)
    batch = [
        {"to": {"users": names[start : start + 100]}, "data": 1, "store": False}
        for start in range(0, users, 100)
    ]
    deadline = Deadline.after(DEADLINE)
    reply = herald.submissions.submit(sender, JSON, json.dumps({"messages": batch}), deadline)
    answer = json.loads(reply.body)

    reached = sum(report["delivered"] for report in answer["messages"])
    assert reached == connections * min(users, 20)
    assert client.calls == ["update_item"] + ["batch_get_item"] * reads


def test_a_refused_post_takes_one_call(client: Any, herald: Herald, user: str) -> None:
    sender = Principal(user, 10**12, scopes=SCOPES)
    with pytest.raises(Exception, match="to is missing"):
        herald.submissions.submit(sender, JSON, "{}", Deadline.after(DEADLINE))
    assert client.calls == ["update_item"]
