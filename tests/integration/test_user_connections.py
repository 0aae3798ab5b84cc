"""A user's connections over REST: listed and closed."""

import time
from typing import Any

import httpx

from tests.support.clients import Client, eventually, token


def call(herald: Client, method: str, path: str, user: str, **claims: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token(user, **claims)}"}
    return herald.http.request(method, path, headers=headers)


def listed(herald: Client, user: str, asked_by: str | None = None, **claims: Any) -> Any:
    answer = call(herald, "GET", f"/users/{user}/connections", asked_by or user, **claims)
    assert answer.status_code == 200, answer.text
    return answer.json()["connections"]


def test_connections_are_listed_with_the_oldest_first(herald: Client, user: str) -> None:
    assert listed(herald, user) == []
    before = int(time.time() * 1000)
    expires = int(time.time()) + 600
    herald.connect(user, exp=expires)
    first = herald.connection_id(user)
    herald.connect(user, exp=int(time.time()) + 86400)
    one, two = listed(herald, user)
    assert one["connectionId"] == first
    assert set(one) == {"connectionId", "status", "connectedAt", "timestamp", "expiresAt"}
    assert before <= one["connectedAt"] <= one["timestamp"] <= time.time() * 1000
    assert one["status"] == "active"
    assert one["expiresAt"] == expires * 1000
    assert two["expiresAt"] == two["connectedAt"] + 7_200_000  # API Gateway closes it then


def test_one_connection_is_closed_and_the_other_stays_open(herald: Client, user: str) -> None:
    closed = herald.connect(user)
    connection_id = herald.connection_id(user)
    kept = herald.connect(user)
    path = f"/users/{user}/connections/{connection_id.replace('=', '%3D')}"
    for _ in range(2):
        answer = call(herald, "DELETE", path, user)
        assert (answer.status_code, answer.content) == (204, b"")
    assert closed.closed_with() == (1000, "Connection Closed Normally")
    assert herald.presence(user)["connections"] == 1
    assert herald.presence(user)["status"] == "online"
    assert kept.ask({"action": "ping"})["type"] == "pong"


def test_all_connections_of_a_user_are_closed_with_the_scope(herald: Client, user: str) -> None:
    sockets = [herald.connect(user) for _ in range(3)]
    path = f"/users/{user}/connections"
    assert call(herald, "DELETE", path, "admin", scope="users:read").status_code == 403
    assert call(herald, "GET", path, "admin", scope="users:read").status_code == 403
    assert len(listed(herald, user, "admin", scope="connections:manage")) == 3
    answer = call(herald, "DELETE", path, "admin", scope="connections:manage")
    assert answer.status_code == 204
    for socket in sockets:
        assert socket.closed_with()[0] == 1000
    assert herald.presence(user)["status"] == "offline"
    eventually(lambda: not herald.connections(user))


def test_ids_of_others_connections_cannot_be_probed(herald: Client, user: str) -> None:
    socket = herald.connect(user, tenant="a")
    connection_id = herald.connection_id(user, "a").replace("=", "%3D")
    answers = [
        call(herald, "DELETE", f"/users/{owner}/connections/{one}", "admin", tenant=tenant)
        for owner, one, tenant in (
            (user, connection_id, "b"),
            ("other", connection_id, "a"),
            (user, "AAAAAAAAAAAAAAA%3D", "b"),
        )
    ]
    assert {(answer.status_code, answer.content) for answer in answers} == {(204, b"")}
    assert call(herald, "DELETE", f"/users/{user}/connections", "admin").status_code == 204
    assert listed(herald, user, "admin", tenant="b") == []
    assert socket.ask({"action": "ping"})["type"] == "pong"
