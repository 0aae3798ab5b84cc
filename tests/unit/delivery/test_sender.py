"""Sender against a stub of `@connections` that fails in many ways."""

import itertools
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib.delivery.congestion import EndpointTimeouts
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.http import HttpTimeouts, Transport
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.delivery.retries import RetryPolicy
from chalicelib.delivery.sender import Sender, SenderLimits
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.aws import Credentials
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient
from tests.support.stub import RAW_RESPONSES, Behaviour, Stub, stub
from tests.unit.delivery.parcels import (
    FRAME,
    SECONDS,
    connection_ids,
    deliver,
    parcels,
    recipient,
)

CREDENTIALS = Credentials("AK", "secret")
IMPATIENT = SenderLimits(
    http=HttpTimeouts(response=0.2),
    retries=RetryPolicy(backoff_seconds=0.001, max_backoff_seconds=0.02),
)
Start = Callable[..., Sender]


@pytest.fixture
def sender_with() -> Iterator[Start]:
    """Create senders, and close them after the test."""
    with ExitStack() as stack:

        def start(limits: SenderLimits) -> Sender:
            sender = Sender(lambda: CREDENTIALS, region="us-east-1", limits=limits)
            return stack.enter_context(closing(sender))

        yield start


@pytest.fixture
def sender(sender_with: Start) -> Sender:
    return sender_with(SenderLimits())


@pytest.fixture
def impatient(sender_with: Start) -> Sender:
    """A sender with short time-outs and pauses."""
    return sender_with(IMPATIENT)


# --- Responses


@pytest.mark.parametrize(
    ("responses", "result", "reason", "requests"),
    [
        ([200], Result.DELIVERED, "", 1),
        (["chunked"], Result.DELIVERED, "", 1),
        (["no length"], Result.DELIVERED, "", 1),
        ([410], Result.GONE, "gone", 1),
        (["410 GoneException"], Result.GONE, "gone", 1),
        (["403 ForbiddenException"], Result.REJECTED, "http_403", 1),
        ([403], Result.REJECTED, "http_403", 1),
        ([400], Result.REJECTED, "http_400", 1),
        ([413], Result.REJECTED, "http_413", 1),
        ([302], Result.REJECTED, "http_302", 1),
        ([429, 500, 200], Result.DELIVERED, "", 3),
        ([429], Result.STALE, "throttled", 8),
        ([503], Result.STALE, "http_503", 4),
        (["reset"], Result.STALE, "connection_failed", 4),
        (["close"], Result.STALE, "connection_failed", 4),
        (["half a head"], Result.STALE, "connection_failed", 4),
        (["half a body"], Result.STALE, "connection_failed", 4),
        (["half a chunk"], Result.STALE, "connection_failed", 4),
        (["garbage"], Result.STALE, "malformed_answer", 4),
        (["endless"], Result.STALE, "malformed_answer", 4),
        (["hang"], Result.STALE, "timeout", 4),
        (["garbage", "reset", "half a head", 200], Result.DELIVERED, "", 4),
        (["403 ExpiredTokenException"], Result.STALE, "not_authorized", 4),
        (["403 AccessDeniedException", 200], Result.DELIVERED, "", 2),
    ],
)
def test_each_response_has_its_result_reason_and_number_of_tries(
    impatient: Sender,
    stubbed: Stub,
    responses: list[Behaviour],
    result: Result,
    reason: str,
    requests: int,
) -> None:
    stubbed.behaviours["c="] = list(responses)
    [outcome] = deliver(impatient, parcels(stubbed.endpoint, ["c="]))
    assert (outcome.result, outcome.reason, outcome.tries) == (result, reason, requests)
    assert len(stubbed.requests) == requests


def test_recipients_of_an_endpoint_that_refuses_connections_are_stale(impatient: Sender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}/prod"
    [outcome] = deliver(impatient, parcels(endpoint, ["c="]))
    assert outcome[2:] == (Result.STALE, "connection_failed", 4)


def test_recipients_of_an_endpoint_with_an_unknown_name_are_stale(impatient: Sender) -> None:
    [outcome] = deliver(impatient, parcels("http://nowhere.invalid/prod", ["c="]))
    assert outcome[2:] == (Result.STALE, "connection_failed", 4)


def test_a_failure_affects_only_its_own_recipient(sender: Sender, stubbed: Stub) -> None:
    stubbed.behaviours = {"c3=": [410], "c5=": [403], "c7=": ["reset", 200]}
    ids = connection_ids(200)
    outcomes = deliver(sender, parcels(stubbed.endpoint, ids))
    assert sorted(outcome.recipient.connection_id for outcome in outcomes) == sorted(ids)
    failed = {
        outcome.recipient.connection_id: outcome.result
        for outcome in outcomes
        if outcome.result is not Result.DELIVERED
    }
    assert failed == {"c3=": Result.GONE, "c5=": Result.REJECTED}
    assert stubbed.counts() == Counter(ids) + Counter(["c7="])


def test_post_sends_one_frame_to_one_connection(sender: Sender, stubbed: Stub) -> None:
    outcome = sender.post("c=", stubbed.endpoint, b"x", Deadline.after(SECONDS))
    assert outcome.recipient == Recipient("c=", "", None, stubbed.endpoint)
    assert (outcome.result, outcome.frame.body) == (Result.DELIVERED, b"x")
    assert stubbed.requests == [("c=", b"x")]
    headers = {name.lower(): value for name, value in stubbed.headers[0].items()}
    assert headers["host"] == urlsplit(stubbed.endpoint).netloc


@pytest.mark.timeout(10)
def test_a_kept_alive_socket_that_is_reset_between_two_frames_does_not_delay_the_second(
    sender: Sender, stubbed: Stub
) -> None:
    frames = [frame_of(b"0"), frame_of(b"1")]
    outcomes: list[Outcome] = []
    for outcome in sender.deliver(
        [parcels(stubbed.endpoint, ["c="], frames)], Deadline.after(SECONDS)
    ):
        outcomes.append(outcome)
        stubbed.reset_sockets()
    assert [outcome[2:] for outcome in outcomes] == [(Result.DELIVERED, "", 1)] * 2


# --- Several frames for one recipient


def test_frames_keep_their_order_and_nothing_follows_a_failure(
    sender: Sender, stubbed: Stub
) -> None:
    frames = [frame_of(str(number).encode()) for number in range(3)]
    stubbed.behaviours = {"bad": [200, 410, 200]}
    outcomes = deliver(sender, parcels(stubbed.endpoint, ["good", "bad"], frames))
    assert stubbed.received("good") == [b"0", b"1", b"2"]
    assert stubbed.received("bad") == [b"0", b"1"]
    bad = [outcome for outcome in outcomes if outcome.recipient.connection_id == "bad"]
    assert [outcome[2:] for outcome in bad] == [
        (Result.DELIVERED, "", 1),
        (Result.GONE, "gone", 1),
        (Result.GONE, "gone", 0),
    ]


def test_each_frame_has_all_its_tries(impatient: Sender, stubbed: Stub) -> None:
    frames = [frame_of(b"0"), frame_of(b"1")]
    stubbed.behaviours["c="] = [500, 500, 500, 200] * 2
    outcomes = deliver(impatient, parcels(stubbed.endpoint, ["c="], frames))
    assert [(outcome.result, outcome.tries) for outcome in outcomes] == [(Result.DELIVERED, 4)] * 2


def test_a_frame_does_not_inherit_the_reason_of_the_one_before(
    sender: Sender, stubbed: Stub
) -> None:
    frames = [frame_of(b"0"), frame_of(b"1")]
    stubbed.behaviours["c="] = [503, 200, "hang"]
    outcomes = deliver(sender, parcels(stubbed.endpoint, ["c="], frames), seconds=1.0)
    assert [outcome[2:] for outcome in outcomes] == [
        (Result.DELIVERED, "", 2),
        (Result.STALE, "deadline", 0),
    ]


behaviours: st.SearchStrategy[list[Behaviour]] = st.lists(
    st.sampled_from([200, 200, 429, 500, 410, 403, "close", "reset", *RAW_RESPONSES]),
    min_size=1,
    max_size=5,
)


@given(st.data())
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_each_frame_of_each_recipient_has_one_outcome_whatever_happens(
    impatient: Sender, stubbed: Stub, data: st.DataObject
) -> None:
    """All examples share one sender, and so one pool of connections."""
    number = data.draw(st.integers(0, 40))
    ids = connection_ids(number)
    frames = [frame_of(bytes([index])) for index in range(data.draw(st.integers(1, 3)))]
    stubbed.requests.clear()
    stubbed.behaviours = {connection: list(data.draw(behaviours)) for connection in ids}
    everyone = parcels(stubbed.endpoint, ids, frames)
    outcomes = deliver(impatient, everyone[:7], [], everyone[7:])
    found = Counter((o.recipient.connection_id, o.frame.body) for o in outcomes)
    assert found == Counter((connection, frame.body) for connection in ids for frame in frames)
    for connection in ids:
        own = [o for o in outcomes if o.recipient.connection_id == connection]
        assert [o.frame for o in own] == frames
        delivered = [o.result is Result.DELIVERED for o in own]
        assert delivered == sorted(delivered, reverse=True)
        bodies = stubbed.received(connection)
        assert bodies == sorted(bodies)
        assert [body for body, _ in itertools.groupby(bodies)][: sum(delivered)] == [
            o.frame.body for o in own if o.result is Result.DELIVERED
        ]


# --- Retries and congestion


def test_a_pause_before_a_retry_is_slept_through(
    sender_with: Start, stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = sender_with(SenderLimits(retries=RetryPolicy(jitter=lambda low, high: 0.3)))
    polls: list[float] = []
    poll = Transport.poll

    def counted(self: "Transport[Any]", seconds: float) -> Any:
        polls.append(seconds)
        return poll(self, seconds)

    monkeypatch.setattr(Transport, "poll", counted)
    stubbed.behaviours["c="] = [500, 200]
    deliver(sender, parcels(stubbed.endpoint, ["c="]))
    assert len(polls) < 30


def test_a_throttled_endpoint_gets_fewer_requests_at_a_time(
    sender_with: Start, stubbed: Stub
) -> None:
    sender = sender_with(SenderLimits(retries=RetryPolicy(backoff_seconds=0.01)))
    stubbed.max_concurrent = 8
    deliver(sender, parcels(stubbed.endpoint, connection_ids(300)))
    stubbed.requests.clear()
    outcomes = deliver(sender, parcels(stubbed.endpoint, connection_ids(300)))
    assert {outcome.result for outcome in outcomes} == {Result.DELIVERED}
    # With 32 at a time, three of four requests would be throttled. The window has adapted to 8.
    assert len(stubbed.requests) < 450


# --- Several endpoints


def test_an_audience_may_have_two_endpoints(sender: Sender, stubbed: Stub) -> None:
    with stub() as other:
        both = [*parcels(stubbed.endpoint, ["a", "b"]), *parcels(other.endpoint, ["c"])]
        outcomes = deliver(sender, both)
        assert {outcome.result for outcome in outcomes} == {Result.DELIVERED}
        assert (stubbed.counts(), other.counts()) == (Counter("ab"), Counter("c"))


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """An endpoint that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/prod"


def test_a_silent_endpoint_does_not_hold_up_the_recipients_of_another(
    sender_with: Start, stubbed: Stub, silent_endpoint: str
) -> None:
    """Twice as many recipients as are pending in memory, of which every other one is silent."""
    sender = sender_with(SenderLimits(endpoint=EndpointTimeouts(silent=0.1, unreachable=math.inf)))
    number = 4000
    pairs = zip(
        parcels(silent_endpoint, connection_ids(number)),
        parcels(stubbed.endpoint, connection_ids(number)),
        strict=True,
    )
    everyone = list(itertools.chain.from_iterable(pairs))
    pages = [everyone[start : start + 500] for start in range(0, len(everyone), 500)]
    delivered = 0
    for outcome in sender.deliver(pages, Deadline.after(SECONDS)):
        if outcome.recipient.endpoint == stubbed.endpoint:
            assert outcome.result is Result.DELIVERED
            delivered += 1
        if delivered == number:
            return
    pytest.fail(f"only {delivered} were delivered")


def test_recipients_of_an_endpoint_that_stays_silent_are_unreachable(
    sender_with: Start, silent_endpoint: str
) -> None:
    sender = sender_with(
        SenderLimits(
            http=HttpTimeouts(response=0.2),
            endpoint=EndpointTimeouts(silent=0.1, unreachable=0.3),
        )
    )
    outcomes = deliver(sender, parcels(silent_endpoint, connection_ids(500)))
    results = Counter(outcome[2:4] for outcome in outcomes)
    assert set(results) <= {(Result.STALE, "timeout"), (Result.STALE, "unreachable")}
    assert results[Result.STALE, "unreachable"] > 250
    assert results.total() == 500


def test_an_endpoint_of_the_settings_replaces_the_recipients(stubbed: Stub) -> None:
    elsewhere = "http://127.0.0.1:9/prod"
    with closing(
        Sender(lambda: CREDENTIALS, region="us-east-1", endpoint=stubbed.endpoint)
    ) as sender:
        outcome = sender.post("c=", elsewhere, b"x", Deadline.after(SECONDS))
    assert outcome.result is Result.DELIVERED


# --- Reading, deadlines, and deliveries that are abandoned


@pytest.mark.timeout(10)
def test_an_empty_audience_ends_at_once(sender: Sender) -> None:
    assert deliver(sender) == []
    assert deliver(sender, [], []) == []


@pytest.mark.timeout(10)
def test_the_end_of_the_pages_may_come_after_the_last_outcome(
    sender: Sender, stubbed: Stub
) -> None:
    def pages() -> Iterator[list[Parcel]]:
        yield parcels(stubbed.endpoint, ["c="])
        time.sleep(0.2)

    assert len(list(sender.deliver(pages(), Deadline.after(SECONDS)))) == 1


def test_every_recipient_has_an_outcome_at_the_deadline(impatient: Sender, stubbed: Stub) -> None:
    ids = connection_ids(100)
    stubbed.behaviours = {connection: ["hang"] for connection in ids}
    outcomes = deliver(
        impatient, *[parcels(stubbed.endpoint, [connection]) for connection in ids], seconds=0.1
    )
    assert [outcome.recipient.connection_id for outcome in outcomes] == sorted(
        ids, key=lambda connection: int(connection[1:-1])
    )
    assert {outcome[2:] for outcome in outcomes} == {(Result.STALE, "deadline", 0)}


def test_nothing_is_sent_after_the_deadline(sender: Sender, stubbed: Stub) -> None:
    [outcome] = deliver(sender, parcels(stubbed.endpoint, ["c="]), seconds=0)
    assert outcome[2:] == (Result.STALE, "deadline", 0)
    assert stubbed.requests == []


def test_no_retry_starts_after_the_deadline(sender_with: Start, stubbed: Stub) -> None:
    sender = sender_with(SenderLimits(retries=RetryPolicy(jitter=lambda low, high: 60.0)))
    stubbed.behaviours["c="] = [503]
    [outcome] = deliver(sender, parcels(stubbed.endpoint, ["c="]), seconds=0.3)
    assert outcome[2:] == (Result.STALE, "http_503", 1)
    assert len(stubbed.requests) == 1


def test_an_audience_that_cannot_be_read_in_the_overtime_raises_unavailable(
    sender_with: Start, stubbed: Stub
) -> None:
    sender = sender_with(SenderLimits(overtime_seconds=0.1))

    def endless() -> Iterator[list[Parcel]]:
        while True:
            yield parcels(stubbed.endpoint, ["c="])
            time.sleep(0.02)

    outcomes: list[Outcome] = []
    with pytest.raises(Unavailable) as unavailable:
        outcomes.extend(sender.deliver(endless(), Deadline.after(0)))
    assert unavailable.value.detail == "the audience could not be read to its end in time"
    assert set(outcomes) == {
        Outcome(recipient(stubbed.endpoint, "c="), FRAME, Result.STALE, "deadline", 0)
    }


def test_an_error_of_reading_is_raised_after_the_outcomes_of_earlier_pages(
    sender: Sender, stubbed: Stub
) -> None:
    def failing() -> Iterator[list[Parcel]]:
        yield parcels(stubbed.endpoint, ["first"])
        raise Unavailable("storage failed")

    outcomes: list[Outcome] = []
    with pytest.raises(Unavailable, match="storage failed"):
        outcomes.extend(sender.deliver(failing(), Deadline.after(SECONDS)))
    assert [outcome.result for outcome in outcomes] == [Result.DELIVERED]


def test_an_abandoned_delivery_does_not_affect_the_next_one(sender: Sender, stubbed: Stub) -> None:
    deadline = Deadline.after(SECONDS)
    first = sender.deliver([parcels(stubbed.endpoint, connection_ids(100))], deadline)
    next(first)
    first.close()  # type: ignore[attr-defined]
    outcomes = deliver(sender, parcels(stubbed.endpoint, ["later"]))
    assert [outcome.recipient.connection_id for outcome in outcomes] == ["later"]


def test_memory_does_not_grow_with_the_audience(sender: Sender, stubbed: Stub) -> None:
    size, read = 500, 0

    def pages() -> Iterator[list[Parcel]]:
        nonlocal read
        for _ in range(30):
            read += size
            yield parcels(stubbed.endpoint, connection_ids(size))

    ahead = 0
    for finished, _ in enumerate(sender.deliver(pages(), Deadline.after(60))):
        ahead = max(ahead, read - finished)
    assert size < ahead <= SenderLimits().pending.usual + 2 * size


# --- Credentials


def test_recipients_are_stale_while_credentials_are_missing(stubbed: Stub) -> None:
    def missing() -> Credentials:
        raise Unavailable("AWS credentials are missing")

    with closing(Sender(missing, region="us-east-1")) as sender:
        outcomes = deliver(sender, parcels(stubbed.endpoint, connection_ids(3)))
    assert {outcome[2:] for outcome in outcomes} == {(Result.STALE, "no_credentials", 0)}


def test_changed_credentials_are_used_from_the_next_second_on(stubbed: Stub) -> None:
    now = 1e9
    keys = iter([Credentials("AK1", "s"), Credentials("AK2", "s", "token")])
    with closing(Sender(lambda: next(keys), region="us-east-1", now=lambda: now)) as sender:
        for _ in range(2):
            deliver(sender, parcels(stubbed.endpoint, ["c="]))
            deliver(sender, parcels(stubbed.endpoint, ["c="]))
            now += 1
    used = [headers["authorization"].partition("/")[0][-3:] for headers in stubbed.headers]
    assert used == ["AK1", "AK1", "AK2", "AK2"]
    assert stubbed.headers[-1]["x-amz-security-token"] == "token"
