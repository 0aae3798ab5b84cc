"""Sender against a stand-in for `@connections` that fails in every way."""

import itertools
import math
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib.delivery import congestion as lanes
from chalicelib.delivery import http as transport
from chalicelib.delivery import sender as delivery_module
from chalicelib.delivery.congestion import MAX_WINDOW, CongestionWindow
from chalicelib.delivery.frames import Frame, frame_of
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.delivery.sender import Sender
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.aws import Credentials
from chalicelib.store.items import Recipient
from tests.support.stub import ODD, Behaviour, Stub, stub

FRAME = frame_of(b"frame")
SECONDS = 20.0
CREDENTIALS = Credentials("AK", "secret")


@pytest.fixture
def stubbed() -> Iterator[Stub]:
    with stub() as endpoint:
        yield endpoint


@pytest.fixture
def delivery() -> Iterator[Sender]:
    with closing(Sender(lambda: CREDENTIALS, region="us-east-1")) as delivery:
        yield delivery


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes moments."""
    monkeypatch.setattr(transport, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(delivery_module, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(delivery_module, "MAX_BACKOFF_SECONDS", 0.02)


def recipient(endpoint: str, connection_id: str) -> Recipient:
    return Recipient(connection_id, "bob", None, endpoint)


def parcels(endpoint: str, ids: Iterable[str], frames: Sequence[Frame] = (FRAME,)) -> list[Parcel]:
    return [Parcel(recipient(endpoint, connection), tuple(frames)) for connection in ids]


def deliver(delivery: Sender, *pages: Sequence[Parcel], seconds: float = SECONDS) -> list[Outcome]:
    return list(delivery.deliver(pages, time.monotonic() + seconds))


def connection_ids(number: int) -> list[str]:
    return [f"c{index}=" for index in range(number)]


# --- What each answer means


@pytest.mark.parametrize(
    ("answers", "result", "reason", "requests"),
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
@pytest.mark.usefixtures("impatient")
def test_what_each_answer_means(
    delivery: Sender,
    stubbed: Stub,
    answers: list[Behaviour],
    result: Result,
    reason: str,
    requests: int,
) -> None:
    stubbed.behaviours["c="] = list(answers)
    [outcome] = deliver(delivery, parcels(stubbed.endpoint, ["c="]))
    assert (outcome.result, outcome.reason, outcome.tries) == (result, reason, requests)
    assert len(stubbed.requests) == requests


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_that_refuses_connections(delivery: Sender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}/prod"
    [outcome] = deliver(delivery, parcels(endpoint, ["c="]))
    assert outcome[2:] == (Result.STALE, "connection_failed", 4)


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_whose_name_is_unknown(delivery: Sender) -> None:
    [outcome] = deliver(delivery, parcels("http://nowhere.invalid/prod", ["c="]))
    assert outcome[2:] == (Result.STALE, "connection_failed", 4)


def test_one_recipients_failure_is_its_own(delivery: Sender, stubbed: Stub) -> None:
    stubbed.behaviours = {"c3=": [410], "c5=": [403], "c7=": ["reset", 200]}
    ids = connection_ids(200)
    outcomes = deliver(delivery, parcels(stubbed.endpoint, ids))
    assert sorted(outcome.recipient.connection_id for outcome in outcomes) == sorted(ids)
    failed = {
        outcome.recipient.connection_id: outcome.result
        for outcome in outcomes
        if outcome.result is not Result.DELIVERED
    }
    assert failed == {"c3=": Result.GONE, "c5=": Result.REJECTED}
    assert stubbed.counts() == Counter(ids) + Counter(["c7="])


def test_frames_keep_their_order_and_none_follows_a_failure(
    delivery: Sender, stubbed: Stub
) -> None:
    frames = [frame_of(str(number).encode()) for number in range(3)]
    stubbed.behaviours = {"bad": [200, 410, 200]}
    outcomes = deliver(delivery, parcels(stubbed.endpoint, ["good", "bad"], frames))
    assert stubbed.received("good") == [b"0", b"1", b"2"]
    assert stubbed.received("bad") == [b"0", b"1"]
    results = [outcome.result for outcome in outcomes if outcome.recipient.connection_id == "bad"]
    assert results == [Result.DELIVERED, Result.GONE, Result.GONE]
    bad = [outcome for outcome in outcomes if outcome.recipient.connection_id == "bad"]
    assert [(outcome.reason, outcome.tries) for outcome in bad] == [
        ("", 1),
        ("gone", 1),
        ("gone", 0),
    ]


@pytest.mark.usefixtures("impatient")
def test_each_frame_has_all_its_tries(delivery: Sender, stubbed: Stub) -> None:
    frames = [frame_of(b"0"), frame_of(b"1")]
    stubbed.behaviours["c="] = [500, 500, 500, 200] * 2
    outcomes = deliver(delivery, parcels(stubbed.endpoint, ["c="], frames))
    assert [(outcome.result, outcome.tries) for outcome in outcomes] == [(Result.DELIVERED, 4)] * 2


def test_what_a_frame_met_is_no_reason_for_the_next(delivery: Sender, stubbed: Stub) -> None:
    frames = [frame_of(b"0"), frame_of(b"1")]
    stubbed.behaviours["c="] = [503, 200, "hang"]
    outcomes = deliver(delivery, parcels(stubbed.endpoint, ["c="], frames), seconds=1.0)
    assert [outcome[2:] for outcome in outcomes] == [
        (Result.DELIVERED, "", 2),
        (Result.STALE, "deadline", 0),
    ]


def test_pauses_double_and_have_an_end(
    delivery: Sender, stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/"""
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    monkeypatch.setattr(random, "uniform", uniform)
    stubbed.behaviours["c="] = [429]
    deliver(delivery, parcels(stubbed.endpoint, ["c="]))
    assert bounds == [(0, high) for high in (0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0)]


def test_a_pause_is_slept_through(
    delivery: Sender, stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the next try does nothing meanwhile."""
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.3)
    polls: list[float] = []
    poll = transport.Transport.poll

    def counted(self: "transport.Transport[Any]", seconds: float) -> Any:
        polls.append(seconds)
        return poll(self, seconds)

    monkeypatch.setattr(transport.Transport, "poll", counted)
    stubbed.behaviours["c="] = [500, 200]
    deliver(delivery, parcels(stubbed.endpoint, ["c="]))
    assert len(polls) < 30


def test_one_frame_to_one_connection(delivery: Sender, stubbed: Stub) -> None:
    outcome = delivery.post("c=", stubbed.endpoint, b"x", time.monotonic() + SECONDS)
    assert outcome.recipient == Recipient("c=", "", None, stubbed.endpoint)
    assert (outcome.result, outcome.frame.body) == (Result.DELIVERED, b"x")
    assert stubbed.requests == [("c=", b"x")]
    headers = {name.lower(): value for name, value in stubbed.headers[0].items()}
    assert headers["host"] == urlsplit(stubbed.endpoint).netloc


behaviours = st.lists(
    st.sampled_from([200, 200, 429, 500, 410, 403, "close", "reset", *ODD]), min_size=1, max_size=5
)


@given(st.data())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.usefixtures("impatient")
def test_whatever_happens_each_frame_of_each_recipient_has_one_outcome(
    delivery: Sender, stubbed: Stub, data: st.DataObject
) -> None:
    """One delivery, and so one pool of connections, for all the examples."""
    number = data.draw(st.integers(0, 40))
    ids = connection_ids(number)
    frames = [frame_of(bytes([index])) for index in range(data.draw(st.integers(1, 3)))]
    stubbed.requests.clear()
    stubbed.behaviours = {connection: list(data.draw(behaviours)) for connection in ids}
    everyone = parcels(stubbed.endpoint, ids, frames)
    outcomes = deliver(delivery, everyone[:7], [], everyone[7:])
    named = Counter((o.recipient.connection_id, o.frame.body) for o in outcomes)
    assert named == Counter((connection, frame.body) for connection in ids for frame in frames)
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


# --- The connections to it


def test_connections_are_kept_from_one_delivery_to_the_next(
    delivery: Sender, stubbed: Stub
) -> None:
    for _ in range(5):
        deliver(delivery, parcels(stubbed.endpoint, connection_ids(3)))
    assert stubbed.opened == 3


def test_a_socket_that_died_in_the_pool_is_no_failure(delivery: Sender, stubbed: Stub) -> None:
    ids = connection_ids(20)
    deliver(delivery, parcels(stubbed.endpoint, ids))
    stubbed.close_sockets()
    outcomes = deliver(delivery, parcels(stubbed.endpoint, ids))
    assert {(outcome.result, outcome.tries) for outcome in outcomes} == {(Result.DELIVERED, 1)}


def test_a_socket_that_dies_as_it_is_used_is_no_failure(delivery: Sender, stubbed: Stub) -> None:
    """The server closes while the request is on its way: it was never seen."""
    deliver(delivery, parcels(stubbed.endpoint, ["first"]))
    stubbed.behaviours["second"] = ["close", 200]
    [outcome] = deliver(delivery, parcels(stubbed.endpoint, ["second"]))
    assert (outcome.result, outcome.tries) == (Result.DELIVERED, 1)
    assert stubbed.opened == 2


def test_sockets_that_slept_for_long_are_not_used(
    delivery: Sender, stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(delivery, parcels(stubbed.endpoint, ["c="]))
    monkeypatch.setattr(transport, "IDLE_SECONDS", -10)
    deliver(delivery, parcels(stubbed.endpoint, ["c="]))
    assert stubbed.opened == 2


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secured(authority: trustme.CA) -> Iterator[Stub]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with stub(context, "localhost") as endpoint:
        yield endpoint


def test_tls_to_a_trusted_server_with_sessions_resumed(
    delivery: Sender,
    secured: Stub,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    large = [frame_of(b"x" * 128 * 1024)]
    for ids in (["first"], connection_ids(10)):
        outcomes = deliver(delivery, parcels(secured.endpoint, ids, large))
        assert {outcome.result for outcome in outcomes} == {Result.DELIVERED}
        assert all(secured.received(connection) == [large[0].body] for connection in ids)
    assert secured.resumed == secured.opened - 1


@pytest.mark.usefixtures("impatient")
def test_tls_to_a_server_that_is_not_trusted(delivery: Sender, secured: Stub) -> None:
    [outcome] = deliver(delivery, parcels(secured.endpoint, ["c="]))
    assert (outcome.result, outcome.reason) == (Result.STALE, "connection_failed")
    assert secured.requests == []


# --- Pace


def test_a_throttled_endpoint_is_given_less_at_a_time(
    delivery: Sender, stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "BACKOFF_SECONDS", 0.01)
    stubbed.at_most = 8
    deliver(delivery, parcels(stubbed.endpoint, connection_ids(300)))
    stubbed.requests.clear()
    outcomes = deliver(delivery, parcels(stubbed.endpoint, connection_ids(300)))
    assert {outcome.result for outcome in outcomes} == {Result.DELIVERED}
    # What 32 at a time would cost: three of four requests refused. The window has learnt 8.
    assert len(stubbed.requests) < 450


def test_the_window_halves_once_for_requests_that_were_under_way_together() -> None:
    window = CongestionWindow()
    for sent_at in (1.0, 2.0, 3.0):
        window.throttled(sent_at, now=5.0)
    assert window.size == lanes.START_WINDOW / 2
    window.throttled(6.0, now=7.0)
    assert window.size == lanes.START_WINDOW / 4


def test_the_window_opens_again_and_is_never_shut() -> None:
    window = CongestionWindow()
    for moment in range(100):
        window.throttled(moment, now=moment)
    assert window.size == 1
    for _ in range(3):
        window.succeeded()
    assert 2 < window.size < 3
    for _ in range(MAX_WINDOW**2):
        window.succeeded()
    assert window.size == MAX_WINDOW


# --- Several endpoints


def test_two_endpoints_in_one_audience(delivery: Sender, stubbed: Stub) -> None:
    with stub() as other:
        both = [*parcels(stubbed.endpoint, ["a", "b"]), *parcels(other.endpoint, ["c"])]
        outcomes = deliver(delivery, both)
        assert {outcome.result for outcome in outcomes} == {Result.DELIVERED}
        assert (stubbed.counts(), other.counts()) == (Counter("ab"), Counter("c"))


def test_a_silent_endpoint_costs_its_own_recipients_only(
    delivery: Sender, stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and never answers; the others are all served though it is not given
    up before they are."""
    monkeypatch.setattr(transport, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(delivery_module, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(delivery_module, "UNREACHABLE_SECONDS", math.inf)
    number = 4000
    results: Counter[tuple[Result, str]] = Counter()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as mute:
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}/prod"
        everyone = list(
            itertools.chain.from_iterable(
                zip(
                    parcels(silent, connection_ids(number)),
                    parcels(stubbed.endpoint, connection_ids(number)),
                    strict=True,
                )
            )
        )
        pages = [everyone[start : start + 500] for start in range(0, len(everyone), 500)]
        for outcome in delivery.deliver(pages, time.monotonic() + SECONDS):
            assert (outcome.result is Result.DELIVERED) == (outcome.recipient.endpoint != silent)
            results[outcome.result, outcome.reason] += 1
            if results[Result.DELIVERED, ""] == number:
                monkeypatch.setattr(delivery_module, "UNREACHABLE_SECONDS", 1.5)
    assert results[Result.DELIVERED, ""] == number
    assert results[Result.STALE, "timeout"] + results[Result.STALE, "unreachable"] == number
    assert results[Result.STALE, "unreachable"] > number / 2


def test_the_override_beats_the_recipients_endpoint(stubbed: Stub) -> None:
    elsewhere = "http://127.0.0.1:9/prod"
    with closing(
        Sender(lambda: CREDENTIALS, region="us-east-1", endpoint=stubbed.endpoint)
    ) as delivery:
        outcome = delivery.post("c=", elsewhere, b"x", time.monotonic() + SECONDS)
    assert outcome.result is Result.DELIVERED


def test_the_region_is_the_endpoints(delivery: Sender) -> None:
    for endpoint, region in {
        "https://abc.execute-api.eu-west-1.amazonaws.com/prod": "eu-west-1",
        "https://abc.execute-api.cn-north-1.amazonaws.com.cn/prod": "cn-north-1",
        "https://ws.example.com": "us-east-1",
    }.items():
        request = delivery._lane(endpoint).signer.request("POST", "c=", b"", "")
        assert f"/{region}/execute-api/aws4_request".encode() in request


# --- Time, and what breaks off


@pytest.mark.timeout(10)
def test_an_audience_of_nobody_is_not_waited_for(delivery: Sender) -> None:
    assert deliver(delivery) == []
    assert deliver(delivery, [], []) == []


@pytest.mark.timeout(10)
def test_an_audience_that_ends_late_is_not_waited_for(delivery: Sender, stubbed: Stub) -> None:
    def pages() -> Iterator[list[Parcel]]:
        yield parcels(stubbed.endpoint, ["c="])
        time.sleep(0.2)

    assert len(list(delivery.deliver(pages(), time.monotonic() + SECONDS))) == 1


@pytest.mark.usefixtures("impatient")
def test_at_the_deadline_everybody_is_named(delivery: Sender, stubbed: Stub) -> None:
    ids = connection_ids(100)
    stubbed.behaviours = {connection: ["hang"] for connection in ids}
    outcomes = deliver(
        delivery, *[parcels(stubbed.endpoint, [connection]) for connection in ids], seconds=0.1
    )
    assert [outcome.recipient.connection_id for outcome in outcomes] == sorted(
        ids, key=lambda connection: int(connection[1:-1])
    )
    assert {outcome[2:] for outcome in outcomes} == {(Result.STALE, "deadline", 0)}


def test_a_deadline_that_has_passed_sends_nothing(delivery: Sender, stubbed: Stub) -> None:
    [outcome] = deliver(delivery, parcels(stubbed.endpoint, ["c="]), seconds=0)
    assert outcome[2:] == (Result.STALE, "deadline", 0)
    assert stubbed.requests == []


def test_no_retry_starts_after_the_deadline(
    delivery: Sender, stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: 60.0)
    stubbed.behaviours["c="] = [503]
    [outcome] = deliver(delivery, parcels(stubbed.endpoint, ["c="]), seconds=0.3)
    assert outcome[2:] == (Result.STALE, "http_503", 1)
    assert len(stubbed.requests) == 1


def test_an_audience_that_cannot_be_read_in_time_says_so(
    delivery: Sender, stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "OVERTIME_SECONDS", 0.1)

    def endless() -> Iterator[list[Parcel]]:
        while True:
            yield parcels(stubbed.endpoint, ["c="])
            time.sleep(0.02)

    outcomes: list[Outcome] = []
    with pytest.raises(Unavailable) as unavailable:
        outcomes.extend(delivery.deliver(endless(), time.monotonic()))
    assert unavailable.value.detail == "the audience could not be read to its end in time"
    assert set(outcomes) == {
        Outcome(recipient(stubbed.endpoint, "c="), FRAME, Result.STALE, "deadline", 0)
    }


def test_pages_that_break_off_do_not_lose_those_before(delivery: Sender, stubbed: Stub) -> None:
    def breaking_off() -> Iterator[list[Parcel]]:
        yield parcels(stubbed.endpoint, ["first"])
        raise Unavailable("storage failed")

    outcomes: list[Outcome] = []
    with pytest.raises(Unavailable, match="storage failed"):
        outcomes.extend(delivery.deliver(breaking_off(), time.monotonic() + SECONDS))
    assert [outcome.result for outcome in outcomes] == [Result.DELIVERED]


def test_a_delivery_that_is_broken_off_leaves_the_next_one_alone(
    delivery: Sender, stubbed: Stub
) -> None:
    deadline = time.monotonic() + SECONDS
    first = delivery.deliver([parcels(stubbed.endpoint, connection_ids(100))], deadline)
    next(first)
    first.close()  # type: ignore[attr-defined]
    outcomes = deliver(delivery, parcels(stubbed.endpoint, ["later"]))
    assert [outcome.recipient.connection_id for outcome in outcomes] == ["later"]


def test_pages_are_read_as_they_are_needed(delivery: Sender, stubbed: Stub) -> None:
    """So that memory does not grow with the audience."""
    size, read = 500, 0

    def pages() -> Iterator[list[Parcel]]:
        nonlocal read
        for _ in range(30):
            read += size
            yield parcels(stubbed.endpoint, connection_ids(size))

    ahead = 0
    for finished, _ in enumerate(delivery.deliver(pages(), time.monotonic() + 60)):
        ahead = max(ahead, read - finished)
    assert size < ahead <= delivery_module.MAX_PENDING + 2 * size


# --- Credentials


def test_without_credentials_nothing_is_known_of_the_recipients(stubbed: Stub) -> None:
    def missing() -> Credentials:
        raise Unavailable("AWS credentials are missing")

    with closing(Sender(missing, region="us-east-1")) as delivery:
        outcomes = deliver(delivery, parcels(stubbed.endpoint, connection_ids(3)))
    assert {outcome[2:] for outcome in outcomes} == {(Result.STALE, "no_credentials", 0)}


def test_credentials_that_change_are_used(stubbed: Stub) -> None:
    now = 1e9
    keys = iter([Credentials("AK1", "s"), Credentials("AK2", "s", "token")])
    with closing(Sender(lambda: next(keys), region="us-east-1", now=lambda: now)) as delivery:
        for _ in range(2):
            deliver(delivery, parcels(stubbed.endpoint, ["c="]))
            deliver(delivery, parcels(stubbed.endpoint, ["c="]))
            now += 1
    used = [headers["authorization"].partition("/")[0][-3:] for headers in stubbed.headers]
    assert used == ["AK1", "AK1", "AK2", "AK2"]
    assert stubbed.headers[-1]["x-amz-security-token"] == "token"
