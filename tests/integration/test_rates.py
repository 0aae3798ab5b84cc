"""Rate limits and quotas through the gateway: the answers at the limits."""

from collections.abc import Callable

from tests.support.clients import Client, token

Start = Callable[..., Client]


def test_rest_and_websockets_share_one_rate(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_MESSAGE_RATE="0.05", HERALD_MESSAGE_BURST="4")
    socket = herald.connect(user)
    assert socket.ask({"action": "ping"})["type"] == "pong"
    assert socket.ask("not json")["code"] == "bad_request"  # an invalid frame counts, too
    for _ in range(2):
        batch = {"messages": [{"to": {"users": ["x"]}, "data": 1}] * 3}
        assert herald.post(batch, user).status_code == 200
    limited = herald.post({"to": {"users": ["x"]}, "data": 1}, user)
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(limited.headers["Retry-After"]) <= 20
    frame = socket.ask({"action": "ping", "ref": "r"})
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
    assert socket.ask({"action": "ping"})["type"] == "pong"


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
    assert socket.ask({"action": "ping"})["code"] == "unavailable"


def test_a_limiter_that_fails_open_lets_messages_pass(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_LIMITER_FAILURE="open", HERALD_MESSAGE_BURST="1")
    socket = herald.connect(user)
    herald.tables.delete_table(TableName="herald-users")
    for _ in range(3):
        assert herald.report({"all": True}, user=user)["delivered"] == 1
        assert socket.messages() == ["hello"]
        assert socket.ask({"action": "ping"})["type"] == "pong"
    assert herald.refusal(f"?token={token(user)}") == 503  # the new connection can't be stored


def test_a_flood_does_not_use_up_other_users_rates(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_MESSAGE_RATE="0.01", HERALD_MESSAGE_BURST="10")
    flood, other = herald.connect(user), herald.connect(f"{user}-2")
    for _ in range(300):
        flood.connection.send('{"action": "ping"}')
    pongs = 0
    for number in range(10):
        assert other.ask({"action": "ping", "ref": str(number)})["type"] == "pong"
    for _ in range(300):
        answer = flood.receive()
        pongs += answer["type"] == "pong"
        assert answer["type"] == "pong" or answer["code"] == "rate_limited"
    assert pongs == 10
