"""DynamoDB down or slow: everybody gets the documented answer, in time."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.clients import Client, token
from tests.proxy import Proxy, proxy

ANSWER_SECONDS = 3.5
"""The promise is three seconds; the rest is for a busy machine."""


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


@pytest.mark.parametrize("state", ["down", "slow"])
def test_nothing_hangs_and_everything_says_so(
    herald: Client, storage: Proxy, user: str, state: str
) -> None:
    socket = herald.connect(user)
    assert herald.http.get("/health").status_code == 200
    storage.become(state)

    started = time.monotonic()
    assert herald.refusal(f"?token={token(user)}") == 503
    assert time.monotonic() - started < ANSWER_SECONDS

    answer = herald.post({"to": {"users": [user]}, "data": 1})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert herald.http.get("/health").status_code == 503

    frame = socket.ask({"action": "ping", "ref": "r"})
    assert (frame["type"], frame["code"], frame["ref"]) == ("error", "unavailable", "r")

    storage.become("up")
    assert socket.ask({"action": "ping"})["type"] == "pong"
    herald.connect(user)
    assert herald.report({"users": [user]})["delivered"] == 2
    assert herald.http.get("/health").status_code == 200
