"""Delivery against a stand-in for `@connections` that fails in every way."""

import time
from collections.abc import Iterator

import pytest

from chalicelib.connections import Recipient
from chalicelib.delivery import Delivery, Outcome, management_client
from chalicelib.errors import Unavailable
from chalicelib.messages import Audience, AudienceKind, Frame, Message, Result
from tests.stub import Stub, stub

MESSAGE = Message("id", "alice", 0, Audience(AudienceKind.ALL), "t", 1)
FRAME = Frame(b"frame", (MESSAGE,))


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with stub() as endpoint:
        yield endpoint


@pytest.fixture
def delivery() -> Delivery:
    return Delivery(management_client, None)


def recipient(stubbed: Stub, connection_id: str) -> Recipient:
    return Recipient(connection_id, "bob", None, stubbed.endpoint)


def deliver(
    delivery: Delivery, stubbed: Stub, ids: list[str], frames: tuple[Frame, ...] = (FRAME,)
) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes, and those that were settled."""
    settled: list[Outcome] = []
    recipients = [recipient(stubbed, connection_id) for connection_id in ids]
    deadline = time.monotonic() + 10
    outcomes = list(delivery.deliver(frames, recipients, settled.append, deadline))
    return outcomes, settled


@pytest.mark.parametrize(
    ("answers", "result", "reason", "requests"),
    [
        ([200], Result.DELIVERED, "", 1),
        ([410], Result.GONE, "gone", 1),
        ([403], Result.REJECTED, "http_403", 1),
        ([400], Result.REJECTED, "http_400", 1),
        ([413], Result.REJECTED, "http_413", 1),
        ([429, 500, 200], Result.DELIVERED, "", 3),
        ([429], Result.STALE, "throttled", 4),
        ([503], Result.STALE, "http_503", 4),
        (["reset"], Result.STALE, "connection_failed", 4),
        (["garbage", 200], Result.DELIVERED, "", 2),
    ],
)
def test_what_each_answer_means(
    delivery: Delivery,
    stubbed: Stub,
    answers: list[int | str],
    result: Result,
    reason: str,
    requests: int,
) -> None:
    stubbed.behaviours["c="] = list(answers)
    outcomes, settled = deliver(delivery, stubbed, ["c="])
    [outcome] = outcomes
    assert (outcome.result, outcome.reason) == (result, reason)
    assert len(stubbed.requests) == requests
    assert settled == ([] if result is Result.DELIVERED else outcomes)


def test_one_recipients_failure_is_its_own(delivery: Delivery, stubbed: Stub) -> None:
    stubbed.behaviours = {"c3=": [410], "c5=": [403]}
    ids = [f"c{number}=" for number in range(200)]
    outcomes, _ = deliver(delivery, stubbed, ids)
    assert [outcome.recipient.connection_id for outcome in outcomes] == ids
    assert sum(outcome.result is Result.DELIVERED for outcome in outcomes) == 198
    assert sorted(connection_id for connection_id, _ in stubbed.requests) == sorted(ids)


def test_frames_keep_their_order_and_none_follows_a_failure(
    delivery: Delivery, stubbed: Stub
) -> None:
    frames = tuple(Frame(str(number).encode(), (MESSAGE,)) for number in range(3))
    stubbed.behaviours = {"bad": [200, 410, 200]}
    outcomes, settled = deliver(delivery, stubbed, ["good", "bad"], frames)
    assert stubbed.received("good") == [b"0", b"1", b"2"]
    assert stubbed.received("bad") == [b"0", b"1"]
    results = [outcome.result for outcome in outcomes if outcome.recipient.connection_id == "bad"]
    assert results == [Result.DELIVERED, Result.GONE, Result.GONE]
    assert len(settled) == 1


def test_recipients_that_break_off_do_not_lose_those_before(
    delivery: Delivery, stubbed: Stub
) -> None:
    def breaking_off() -> Iterator[Recipient]:
        yield recipient(stubbed, "first")
        raise Unavailable("storage failed")

    outcomes: list[Outcome] = []
    deadline = time.monotonic() + 10
    delivering = delivery.deliver((FRAME,), breaking_off(), outcomes.append, deadline)
    with pytest.raises(Unavailable):
        outcomes.extend(delivering)
    assert [outcome.result for outcome in outcomes] == [Result.DELIVERED]


def test_no_retry_starts_after_the_deadline(delivery: Delivery, stubbed: Stub) -> None:
    stubbed.behaviours["c="] = [503]
    result, reason = delivery.post("c=", stubbed.endpoint, b"x", time.monotonic())
    assert (result, reason) == (Result.STALE, "http_503")
    assert len(stubbed.requests) == 1


def test_the_override_beats_the_recipients_endpoint(stubbed: Stub) -> None:
    delivery = Delivery(management_client, stubbed.endpoint)
    elsewhere = "http://127.0.0.1:9/prod"
    assert delivery.post("c=", elsewhere, b"x", time.monotonic() + 5)[0] is Result.DELIVERED
