"""How much a user may do: the answers at the limits."""

from collections.abc import Callable

from tests.clients import Client, token

Start = Callable[..., Client]


def test_the_rate_is_one_over_rest_and_websockets(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_MESSAGE_RATE="0.05", HERALD_MESSAGE_BURST="4")
    socket = herald.connect(user)
    assert socket.ask({"action": "ping"})["type"] == "pong"
    assert socket.ask("not json")["code"] == "bad_request"  # whatever it holds, it counts
    for _ in range(2):
        batch = {"messages": [{"to": {"users": ["x"]}, "data": 1}] * 3}
        assert herald.post(batch, user).status_code == 200
    limited = herald.post({"to": {"users": ["x"]}, "data": 1}, user)
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(limited.headers["Retry-After"]) <= 20
    frame = socket.ask({"action": "ping", "ref": "r"})
    assert (frame["code"], frame["ref"]) == ("rate_limited", "r")
    assert 1 <= frame["retryAfterMs"] <= 20_000
    # Another's rate is another's.
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
    assert socket.ask({"action": "ping"})["type"] == "pong"


def test_who_connects_too_often_is_429(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_CONNECT_RATE="2")
    for _ in range(2):
        herald.connect(user).connection.close()
    assert herald.refusal(f"?token={token(user)}") == 429
    herald.connect(f"{user}-2")
