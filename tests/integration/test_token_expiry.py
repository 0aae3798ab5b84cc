"""A connection ends when its token expires, unless the token is refreshed."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.clients import EVERY_SCOPE, LEAVE, Client, eventually, token

LEEWAY = 5


def nearly_expired() -> int:
    """Return the `exp` of a token that is accepted for three more seconds."""
    return int(time.time()) + 4 - LEEWAY


def outlive(exp: int) -> None:
    """Wait until a token with this `exp` is no longer accepted."""
    time.sleep(exp + LEEWAY - time.time() + 0.1)


def test_an_expired_connection_is_told_so_closed_and_removed_and_not_delivered_to(
    herald: Client, user: str
) -> None:
    exp = nearly_expired()
    socket = herald.connect(user, exp=exp)
    other = herald.connect(user)
    assert herald.report({"users": [user]})["delivered"] == 2
    assert socket.messages() == other.messages() == ["hello"]
    outlive(exp)
    assert herald.report({"users": [user]})["recipients"] == 1
    assert socket.receive() == {"type": "notice", "code": "token_expired"}
    assert socket.closed_with()[0] == 1000
    assert other.messages() == ["hello"]
    assert herald.presence(user)["connections"] == 1


def test_a_frame_after_the_expiry_is_answered_with_an_error_and_a_close(
    herald_with: Callable[..., Client], user: str
) -> None:
    herald = herald_with(GATEWAY_SCHEDULE_SECONDS="86400")  # the sweep would come first
    exp = nearly_expired()
    socket = herald.connect(user, exp=exp)
    outlive(exp)
    answer = socket.ask({"action": "heartbeat", "ref": "r"})
    assert (answer["type"], answer["code"], answer["ref"]) == ("error", "token_expired", "r")
    assert socket.closed_with()[0] == 1000
    eventually(lambda: not herald.connections(user))


def test_a_refreshed_token_keeps_a_connection_alive_with_its_own_rights(
    herald: Client, user: str
) -> None:
    exp = nearly_expired()
    socket = herald.connect(user, exp=exp, groups=["a", "b"])
    expires = int(time.time()) + 900
    fresh = token(user, "ws:connect", exp=expires, groups=["b"])
    answer = socket.ask({"action": "refresh", "token": fresh, "ref": "r"})
    assert answer == {"type": "refreshed", "expiresAt": expires * 1000, "ref": "r"}
    [item] = herald.connections(user)
    assert item["groups"] == {"SS": ["b"]}
    assert "eyJ" not in str(item)
    outlive(exp)
    assert socket.ask({"action": "heartbeat"})["type"] == "heartbeat"
    assert socket.ask(LEAVE)["type"] == "left"
    assert herald.report({"users": [user]})["delivered"] == 1
    assert socket.messages() == ["hello"]
    refused = socket.ask({"action": "send", "to": {"users": [user]}, "data": 1})
    assert refused["code"] == "forbidden"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": 1}, "unauthorized"),
        ({"key": "another-key-that-is-long-enough-for-it"}, "unauthorized"),
        ({"scope": "messages:send"}, "forbidden"),
        ({"tenant": "another"}, "forbidden"),
        ({"user": "another"}, "forbidden"),
    ],
)
def test_a_token_that_does_not_fit_is_refused_and_the_connection_stays_open(
    herald: Client, user: str, claims: Any, code: str
) -> None:
    socket = herald.connect(user)
    wrong = token(**{"user": user, "scope": EVERY_SCOPE, **claims})
    answer = socket.ask({"action": "refresh", "token": wrong, "ref": "r"})
    assert (answer["type"], answer["code"], answer["ref"]) == ("error", code, "r")
    assert wrong not in str(answer)
    assert socket.ask({"action": "refresh"})["code"] == "bad_request"
    assert socket.ask({"action": "ping"})["type"] == "pong"
