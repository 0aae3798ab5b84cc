"""DynamoDB down or slow: requests, handshakes and frames get the documented answer in time.

The tests measure no time: they count the attempts, and each attempt has a time-out.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chalicelib.runtime.aws import CLIENT_LIMITS
from tests.faults.spoiler import (
    AWS,
    CONNECTIONS,
    Exchange,
    Fault,
    Plan,
    answer_lost,
    answered_too_late,
    spoiler,
    throttled,
    too_late,
    untouched,
)
from tests.support.clients import LEAVE, Client, eventually, token
from tests.support.proxy import Proxy, proxy

ANSWER_SECONDS = 3.0
ATTEMPTS = 2
LONGEST_PAUSE_SECONDS = 1.0  # between the SDK's attempts


@pytest.fixture
def storage() -> Iterator[Proxy]:
    with proxy() as proxied:
        yield proxied


@pytest.fixture
def herald(herald_with: Callable[..., Client], storage: Proxy) -> Client:
    """A gateway whose functions reach DynamoDB through `storage`."""
    client = herald_with(AWS_ENDPOINT_URL_DYNAMODB=storage.url)
    storage.lead_to(client.running.aws["AWS_ENDPOINT_URL"])
    return client


def test_all_attempts_of_a_call_fit_into_the_answer_time() -> None:
    limits: Any = CLIENT_LIMITS
    longest = max(limits.connect_timeout, limits.read_timeout)
    assert limits.retries == {"mode": "standard", "total_max_attempts": ATTEMPTS}
    assert ATTEMPTS * longest + (ATTEMPTS - 1) * LONGEST_PAUSE_SECONDS < ANSWER_SECONDS


@pytest.mark.parametrize("state", ["down", "slow"])
def test_every_entry_point_answers_503_while_storage_is_down_and_then_recovers(
    herald: Client, storage: Proxy, user: str, state: str
) -> None:
    socket = herald.connect(user)
    assert herald.http.get("/health").status_code == 200
    storage.become(state)

    assert herald.refusal(f"?token={token(user)}") == 503
    assert storage.accepted == 2 * ATTEMPTS  # it also tries to remove what it may have stored

    answer = herald.post({"to": {"users": [user]}, "data": 1})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    eventually(lambda: herald.http.get("/health").status_code == 503)  # the last answer is kept

    for asked in (LEAVE, {"action": "heartbeat"}):
        frame = socket.ask({**asked, "ref": "r"})
        assert (frame["type"], frame["code"], frame["ref"]) == ("error", "unavailable", "r")

    storage.become("up")
    assert socket.ask({"action": "heartbeat"})["type"] == "heartbeat"
    herald.connect(user)
    assert herald.report({"users": [user]})["delivered"] == 2
    eventually(lambda: herald.http.get("/health").status_code == 200)


def throttled_batches(exchange: Exchange) -> None:
    """Refuse writes to the history, as DynamoDB does when the table has no room."""
    (throttled if exchange.request.name == "BatchWriteItem" else untouched)(exchange)


def test_messages_are_delivered_and_reported_while_the_history_is_throttled(
    herald_with: Callable[..., Client], user: str
) -> None:
    with spoiler() as spoiling:
        herald = herald_with(
            AWS_ENDPOINT_URL_DYNAMODB=spoiling.urls[AWS], HERALD_INLINE_RECIPIENTS="1"
        )
        spoiling.targets[AWS] = herald.running.aws["AWS_ENDPOINT_URL"]
        one, two = herald.connect(user), herald.connect(f"{user}-2")
        spoiling.begin(Plan(throttled_batches, 0, 10**6))

        report = herald.report({"users": [user]})
        assert (report["delivered"], report["stored"]) == (1, False)
        assert one.messages() == ["hello"]
        sent = one.ask({"action": "send", "to": {"users": [f"{user}-2"]}, "data": 1, "ref": "r"})
        assert (sent["type"], sent["delivered"], sent["stored"]) == ("ack", 1, False)
        assert two.messages() == [1]
        assert (
            "stored"
            not in herald.post({"to": {"users": [user]}, "data": 2, "store": False}).json()[
                "messages"
            ][0]
        )
        assert one.messages() == [2]

        answer = herald.post({"to": {"users": [user, f"{user}-2"]}, "data": 3})
        [entry] = answer.json()["messages"]
        assert answer.status_code == 202
        assert entry == {"id": entry["id"], "queued": True, "stored": False}
        assert (one.messages(), two.messages()) == ([3], [3])

        spoiling.end()
        assert "stored" not in herald.report({"users": [user]})


@pytest.mark.parametrize("fault", [answer_lost, answered_too_late, too_late])
def test_a_handshake_whose_transaction_is_carried_out_without_an_answer_leaves_nothing(
    herald_with: Callable[..., Client], user: str, fault: Fault
) -> None:
    with spoiler() as spoiling:
        herald = herald_with(
            AWS_ENDPOINT_URL_DYNAMODB=spoiling.urls[AWS], GATEWAY_SCHEDULE_SECONDS="86400"
        )
        running = herald.running
        spoiling.targets |= {AWS: running.aws["AWS_ENDPOINT_URL"], CONNECTIONS: running.http}
        spoiling.begin(Plan(fault, 0, ATTEMPTS))
        assert herald.refusal(f"?token={token(user)}") == 503
        spoiling.wait_until_spoiled()
        spoiling.end()
        eventually(lambda: not herald.connections(user))
        assert herald.presence(user)["connections"] == 0
        herald.connect(user)
        report = herald.report({"users": [user]})
        assert (report["recipients"], report["delivered"]) == (1, 1)
