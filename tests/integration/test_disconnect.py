"""A connection that ends leaves behind only when its user was last seen."""

import time

from tests.support.clients import Client, eventually


def test_a_closed_connection_is_removed_and_presence_changes(herald: Client, user: str) -> None:
    assert herald.presence(user) == {
        "userId": user, "status": "offline", "lastSeen": None, "connections": 0,
    }  # fmt: skip
    first, second = herald.connect(user), herald.connect(user)
    online = herald.presence(user)
    assert (online["status"], online["connections"]) == ("online", 2)

    first.connection.close()
    eventually(lambda: herald.presence(user)["connections"] == 1)
    assert herald.presence(user)["status"] == "online"

    left = int(time.time() * 1000)
    second.connection.close()
    eventually(lambda: herald.presence(user)["status"] == "offline")
    assert herald.presence(user)["lastSeen"] >= left
    assert herald.connections(user) == []


def test_a_broken_connection_is_removed(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    socket.connection.socket.close()
    eventually(lambda: herald.presence(user)["status"] == "offline")
    assert herald.connections(user) == []


def test_presence_of_others_needs_the_scope(herald: Client, user: str) -> None:
    herald.connect(user)
    asked = herald.presence(user, asked_by="other", scope="users:read")
    assert asked["status"] == "online"
    assert herald.presence(user, asked_by="other", scope="")["code"] == "forbidden"


def test_presence_stays_within_the_tenant(herald: Client, user: str) -> None:
    herald.connect(user, tenant="a/b")
    assert herald.presence(user, tenant="a/b")["status"] == "online"
    assert herald.presence(user, tenant="a")["status"] == "offline"
    assert herald.presence(f"b%2F{user}", asked_by="x", tenant="a")["status"] == "offline"


def test_a_user_id_may_have_reserved_characters(herald: Client, user: str) -> None:
    name = f"{user} / ü%41"
    herald.connect(name)
    escaped = f"{user}%20%2F%20%C3%BC%2541"
    found = herald.presence(escaped, asked_by="other")
    assert (found["userId"], found["status"]) == (name, "online")
