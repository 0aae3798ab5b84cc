"""Rate limits and quotas through the gateway: the answers at the limits."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.clients import LEAVE, Client, eventually, token, whole_lines

Start = Callable[..., Client]


def test_rest_and_websockets_share_one_rate(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_MESSAGE_RATE="0.05", HERALD_MESSAGE_BURST="4")
    socket = herald.connect(user)
    assert socket.ask(LEAVE)["type"] == "left"
    assert socket.ask("not json")["code"] == "bad_request"  # an invalid frame counts, too
    for _ in range(2):
        batch = {"messages": [{"to": {"users": ["x"]}, "data": 1}] * 3}
        assert herald.post(batch, user).status_code == 200
    limited = herald.post({"to": {"users": ["x"]}, "data": 1}, user)
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(limited.headers["Retry-After"]) <= 20
    frame = socket.ask({**LEAVE, "ref": "r"})
    assert (frame["code"], frame["ref"]) == ("rate_limited", "r")
    assert 1 <= frame["retryAfterMs"] <= 20_000
    # Another user has a rate of their own.
    assert herald.post({"to": {"users": ["x"]}, "data": 1}, f"{user}-2").status_code == 200


def test_the_quota_counts_each_message(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_DAILY_MESSAGE_QUOTA="5")
    socket = herald.connect(user)
    batch = {"messages": [{"to": {"users": ["x"]}, "data": 1}] * 4}
    assert herald.post(batch, user).status_code == 200
    over = herald.post(batch, user)
    assert (over.status_code, over.json()["code"]) == (429, "quota_exceeded")
    assert int(over.headers["Retry-After"]) >= 1
    send = {"action": "send", "to": {"users": ["x"]}, "data": 1}
    assert socket.ask(send)["type"] == "ack"
    assert socket.ask(send)["code"] == "quota_exceeded"
    assert socket.ask(LEAVE)["type"] == "left"


def test_connecting_too_often_is_429(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_CONNECT_RATE="2")
    for _ in range(2):
        herald.connect(user).connection.close()
    assert herald.refusal(f"?token={token(user)}") == 429
    herald.connect(f"{user}-2")


def test_a_limiter_that_fails_closed_refuses_messages(herald_with: Start, user: str) -> None:
    herald = herald_with()
    socket = herald.connect(user)
    herald.tables.delete_table(TableName="herald-users")
    answer = herald.post({"to": {"all": True}, "data": 1}, user)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert socket.ask(LEAVE)["code"] == "unavailable"


def test_a_limiter_that_fails_open_lets_messages_pass(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_LIMITER_FAILURE="open", HERALD_MESSAGE_BURST="1")
    socket = herald.connect(user)
    herald.tables.delete_table(TableName="herald-users")
    for _ in range(3):
        assert herald.report({"all": True}, user=user)["delivered"] == 1
        assert socket.messages() == ["hello"]
        assert socket.ask(LEAVE)["type"] == "left"
    assert herald.refusal(f"?token={token(user)}") == 503  # the new connection can't be stored


def test_a_flood_does_not_use_up_other_users_rates(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_MESSAGE_RATE="0.01", HERALD_MESSAGE_BURST="10")
    flood, other = herald.connect(user), herald.connect(f"{user}-2")
    for _ in range(100):  # of which 90 are refused, so that the connection stays open
        flood.connection.send(json.dumps(LEAVE))
    accepted = 0
    for number in range(10):
        assert other.ask({**LEAVE, "ref": str(number)})["type"] == "left"
    for _ in range(100):
        answer = flood.receive()
        accepted += answer["type"] == "left"
        assert answer["type"] == "left" or answer["code"] == "rate_limited"
    assert accepted == 10


def test_a_request_of_ten_thousand_copies_is_paid_for_by_refusals(
    herald_with: Start, user: str
) -> None:
    """At five units a second and a burst of ten, a hundred units are 18 seconds of 429."""
    herald = herald_with(HERALD_MESSAGE_RATE="5", HERALD_MESSAGE_BURST="10")
    names = [f"nobody-{number}" for number in range(100)]
    batch = {"messages": [{"to": {"users": names}, "data": 1}] * 100}
    small = {"to": {"users": ["nobody"]}, "data": 1}
    with ThreadPoolExecutor(1) as threads:
        large = threads.submit(herald.post, batch, user)
        eventually(lambda: herald.post(small, user).status_code == 429)
        limited = herald.post(small, user)
        assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
        assert 10 <= int(limited.headers["Retry-After"]) <= 19 + 10  # and what passed before
        # Nobody else waits for it.
        assert herald.post(small, f"{user}-2").status_code == 200
        answer = large.result()
    assert answer.status_code == 200
    stored = [report.get("stored", True) for report in answer.json()["messages"]]
    # It is written at the pace of its sender, for a limited time.
    assert stored[0]
    assert not stored[-1]
    assert stored == sorted(stored, reverse=True)


def test_a_request_of_ten_thousand_copies_is_followed_by_refusals(
    herald: Client, user: str
) -> None:
    names = [f"nobody-{number}" for number in range(100)]
    batch = {"messages": [{"to": {"users": names}, "data": 1}] * 100}
    assert herald.post(batch, user).status_code == 200
    limited = herald.post({"to": {"users": ["nobody"]}, "data": 1}, user)
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(limited.headers["Retry-After"]) <= 4


def test_frames_are_paid_for_before_they_are_sent(herald_with: Start, user: str) -> None:
    """A message of 100 KB is four copies for each of 60 connections: three units."""
    herald = herald_with(
        HERALD_MESSAGE_RATE="0.01",
        HERALD_MESSAGE_BURST="4",
        HERALD_MAX_CONNECTIONS_PER_USER="60",
        HERALD_CONNECT_RATE="100",
    )
    for _ in range(60):
        herald.connect(user)
    large = {"to": {"users": [user]}, "data": "x" * 100_000, "store": False}
    answer = herald.post(large, "alice")
    assert answer.json()["messages"][0]["delivered"] == 60
    assert herald.post(large, "alice").status_code == 200  # with the unit that is left
    limited = herald.post(large, "alice")
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert 250 <= int(limited.headers["Retry-After"]) <= 300


def test_the_quota_counts_units(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_DAILY_MESSAGE_QUOTA="5")
    names = [f"nobody-{number}" for number in range(100)]
    four_units = {"to": {"users": names}, "data": "x" * 3500}
    assert herald.post(four_units, user).status_code == 200
    assert herald.post(four_units, user).json()["code"] == "quota_exceeded"
    assert herald.post({"to": {"users": ["nobody"]}, "data": 1}, user).status_code == 200


def test_attempts_refused_at_the_connection_limit_are_charged_to_the_connect_rate(
    herald_with: Start, user: str
) -> None:
    herald = herald_with(HERALD_CONNECT_RATE="12", HERALD_MAX_CONNECTIONS_PER_USER="1")
    kept = herald.connect(user)
    for _ in range(100):
        assert herald.refusal(f"?token={token(user)}") == 429
    kept.connection.close()
    eventually(lambda: not herald.connections(user))
    assert herald.refusal(f"?token={token(user)}") == 429  # there is room, but no unit is left


def test_attempts_refused_for_other_reasons_are_charged_to_the_connect_rate(
    herald_with: Start, user: str
) -> None:
    herald = herald_with(HERALD_CONNECT_RATE="4", HERALD_ALLOWED_ORIGINS="https://app.example.com")
    bearer = {"Authorization": f"Bearer {token(user)}"}
    too_many = token(user, groups=[f"group-{number}" for number in range(51)])
    assert herald.refusal(headers=bearer, origin="https://evil.example.com") == 403
    assert herald.refusal(headers=bearer, subprotocols=["mqtt"]) == 400
    assert herald.refusal(f"?token={too_many}") == 400
    herald.connect(user)
    assert herald.refusal(headers=bearer) == 429
    assert herald.refusal(headers=bearer, origin="https://evil.example.com") == 429


def test_requests_that_send_nothing_share_one_rate(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_READ_RATE="0.05", HERALD_READ_BURST="7")
    headers = {"Authorization": f"Bearer {token(user)}"}
    requests = [
        ("GET", f"/messages/{'0' * 26}", 404),
        ("GET", f"/users/{user}", 200),
        ("GET", f"/users/{user}/connections", 200),
        ("DELETE", f"/users/{user}/connections", 204),
        ("DELETE", f"/users/{user}/connections/x", 204),
        ("GET", "/keys", 200),
        ("GET", f"/users/{'x' * 129}", 400),  # a refused request counts, too
    ]
    for method, path, status in requests:
        assert herald.http.request(method, path, headers=headers).status_code == status
    for method, path, _ in requests:
        limited = herald.http.request(method, path, headers=headers)
        assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(limited.headers["Retry-After"]) <= 20
    # Sending has a rate of its own, and so has another user.
    assert herald.post({"to": {"users": ["x"]}, "data": 1}, user).status_code == 200
    assert herald.presence(f"{user}-2")["status"] == "offline"


def test_a_flood_of_health_checks_does_not_reach_storage(
    herald_with: Start, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    herald = herald_with(GATEWAY_CALLS_FILE=str(calls))
    for _ in range(300):
        assert herald.http.get("/health").json() == {"status": "ok"}
    reads = [line for line in whole_lines(calls) if "BatchGetItem" in line]
    assert len(reads) < 60  # five tables each time that storage is asked


BAD = "not json"
FORBIDDEN = {"action": "join", "group": "elsewhere"}  # refused after it is charged


def test_a_connection_is_closed_after_300_refused_frames_that_came_at_once(
    herald_with: Start, user: str
) -> None:
    herald = herald_with(HERALD_MESSAGE_RATE="0.01", HERALD_MESSAGE_BURST="10")
    socket = herald.connect(user)
    with suppress(ConnectionClosed):
        for _ in range(300):
            socket.connection.send(BAD)
    assert socket.closed_with() == (1000, "Connection Closed Normally")
    eventually(lambda: not herald.connections(user))
    herald.connect(user)


@pytest.mark.parametrize("refused", [BAD, FORBIDDEN], ids=["unreadable", "forbidden"])
def test_a_connection_is_closed_with_the_error_of_the_100th_refused_frame(
    herald_with: Start, user: str, refused: Any
) -> None:
    herald = herald_with(HERALD_MESSAGE_RATE="1000", HERALD_MESSAGE_BURST="1000")
    socket = herald.connect(user)
    for _ in range(2):
        for _ in range(99):
            assert socket.ask(refused)["type"] == "error"
        assert socket.ask(LEAVE)["type"] == "left"
    for _ in range(100):
        assert socket.ask(refused)["type"] == "error"
    assert socket.closed_with() == (1000, "Connection Closed Normally")
    eventually(lambda: not herald.connections(user))


def test_a_frame_costs_what_a_post_costs(herald_with: Start, user: str) -> None:
    """3.5 KB to a hundred names are four units."""
    herald = herald_with(HERALD_MESSAGE_RATE="0.01", HERALD_MESSAGE_BURST="4")
    socket = herald.connect(user)
    names = [f"nobody-{number}" for number in range(100)]
    send = {"action": "send", "to": {"users": names}, "data": "x" * 3500}
    assert socket.ask(send)["type"] == "ack"
    refused = socket.ask(LEAVE)
    assert refused["code"] == "rate_limited"
    assert 50_000 <= refused["retryAfterMs"] <= 100_000
