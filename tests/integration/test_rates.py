"""Rate limits and quotas through the gateway: the answers at the limits."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.support.clients import Client, eventually, token

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


def test_a_frame_costs_what_a_post_costs(herald_with: Start, user: str) -> None:
    """3.5 KB to a hundred names are four units."""
    herald = herald_with(HERALD_MESSAGE_RATE="0.01", HERALD_MESSAGE_BURST="4")
    socket = herald.connect(user)
    names = [f"nobody-{number}" for number in range(100)]
    send = {"action": "send", "to": {"users": names}, "data": "x" * 3500}
    assert socket.ask(send)["type"] == "ack"
    refused = socket.ask({"action": "ping"})
    assert refused["code"] == "rate_limited"
    assert 50_000 <= refused["retryAfterMs"] <= 100_000
