"""`Idempotency-Key` through the gateway: a repeated request is carried out once."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.clients import Client, token
from tests.support.stub import stub


def post(herald: Client, key: str, body: Any, user: str = "alice", **claims: Any) -> httpx.Response:
    headers = {
        "Authorization": f"Bearer {token(user, **claims)}",
        "Content-Type": "application/json",
        "Idempotency-Key": key,
    }
    return herald.http.post("/messages", content=json.dumps(body), headers=headers)


def message(user: str, data: Any = "hello") -> Any:
    return {"to": {"users": [user]}, "data": data}


def test_a_repeated_request_gets_the_first_answer_and_sends_nothing(
    herald: Client, user: str
) -> None:
    socket = herald.connect(user)
    first = post(herald, user, message(user))
    assert first.status_code == 200
    assert "Idempotent-Replayed" not in first.headers
    assert socket.messages() == ["hello"]
    reordered = {"data": "hello", "to": {"users": [user]}}
    for body in (message(user), reordered):
        again = post(herald, user, body)
        assert (again.status_code, again.json()) == (200, first.json())
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.headers["Cache-Control"] == "no-store"
    socket.assert_quiet()


def test_a_key_with_another_body_is_422(herald: Client, user: str) -> None:
    post(herald, user, message(user))
    other = post(herald, user, message(user, "bye"))
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_users_do_not_share_keys(herald: Client, user: str) -> None:
    answers = [
        post(herald, "the-same", message(user), f"{user}-1"),
        post(herald, "the-same", message(user), f"{user}-2"),
        post(herald, "the-same", message(user), f"{user}-1", tenant="t"),
        post(herald, "the-same", message(user, 2), f"{user}-1", tenant="u"),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert not any("Idempotent-Replayed" in answer.headers for answer in answers)
    assert len({answer.json()["messages"][0]["id"] for answer in answers}) == 4


def test_concurrent_requests_with_one_key_send_once(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: post(herald, user, message(user)), range(12)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    carried_out = [
        answer
        for answer in answers
        if answer.status_code == 200 and "Idempotent-Replayed" not in answer.headers
    ]
    assert len(carried_out) == 1
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["code"] == "request_in_progress"
            assert int(answer.headers["Retry-After"]) >= 1
        else:
            assert answer.json() == carried_out[0].json()
    assert socket.messages() == ["hello"]
    socket.assert_quiet()


def test_a_refused_request_can_be_corrected_under_the_same_key(herald: Client, user: str) -> None:
    herald.connect(user)
    large = post(herald, user, message(user, "x" * 140_000))
    assert large.status_code == 413
    forbidden = post(herald, user, message(user), scope="")
    assert forbidden.status_code == 403
    malformed = post(herald, user, {"to": {"users": [user]}})
    assert malformed.status_code == 400
    assert post(herald, user, message(user)).json()["messages"][0]["delivered"] == 1


@pytest.mark.parametrize(("key", "status"), [("k" * 255, 200), ("k" * 256, 400), ("", 400)])
def test_a_key_has_1_to_255_characters(herald: Client, user: str, key: str, status: int) -> None:
    answer = post(herald, key, message("nobody"), user)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["detail"] == "Idempotency-Key must have 1 to 255 characters"


def test_a_replay_counts_against_the_rate_and_not_the_quota(
    herald_with: Callable[..., Client],
) -> None:
    herald = herald_with(
        HERALD_DAILY_MESSAGE_QUOTA="1", HERALD_MESSAGE_RATE="0.01", HERALD_MESSAGE_BURST="4"
    )
    assert post(herald, "k", message("a")).status_code == 200
    for _ in range(2):
        assert post(herald, "k", message("a")).headers["Idempotent-Replayed"] == "true"
    assert post(herald, "l", message("a")).json()["code"] == "quota_exceeded"
    assert [post(herald, "k", message("a")).status_code for _ in range(3)][-1] == 429


def test_a_report_with_failures_is_replayed_unchanged(herald_with: Callable[..., Client]) -> None:
    with stub() as stubbed:
        herald = herald_with(HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint)
        herald.connect("bob")
        stubbed.behaviours[herald.connection_id("bob")] = ["410 GoneException"]
        first = post(herald, "k", message("bob"))
        assert first.json()["messages"][0]["gone"] == 1
        requests = len(stubbed.requests)
        assert post(herald, "k", message("bob")).json() == first.json()
        assert len(stubbed.requests) == requests
