"""The writes and notices for each outcome of a delivery or a probe."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chalicelib.clock import EpochMs
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.notices import Removed
from chalicelib.delivery.outcomes import OutcomeRecorder, RecordingLimits
from chalicelib.delivery.parcel import Outcome
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient
from tests.support.world import Inline
from tests.unit.delivery.fakes import (
    DELIVERED,
    NOW,
    FakeConnections,
    FakeDelivery,
    StuckExecutor,
    recipient,
)

FRAME = frame_of(b"frame")
GONE = (Result.GONE, "gone")
STALE = (Result.STALE, "http_503")
SECONDS = 20.0
MAX_WAITING = 2


class FakeNotifier:
    """Yields scripted outcomes of notices, and records the removed connections."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = outcomes
        self.removed: list[Removed] = []

    def notify_removed(self, removed: Sequence[Removed], deadline: Deadline) -> Iterator[Outcome]:
        self.removed += removed
        yield from self._outcomes


class Recording:
    """An OutcomeRecorder over fakes."""

    def __init__(
        self,
        *,
        failing: Sequence[str] = (),
        delivery: FakeDelivery | None = None,
        notices: Sequence[Outcome] = (),
        writers: Any = None,
    ) -> None:
        self.connections = FakeConnections(*failing)
        self.delivery = delivery or FakeDelivery()
        self.notifier = FakeNotifier(*notices)
        connections: Any = self.connections
        notifier: Any = self.notifier
        writers = writers or Inline()
        disconnector = Disconnector(
            connections=connections,
            delivery=self.delivery,
            writers=writers,
            now=lambda: NOW,
            handshake_pauses=(0.0, 0.0),
        )
        self.recorder = OutcomeRecorder(
            connections=connections,
            delivery=self.delivery,
            disconnector=disconnector,
            notifier=notifier,
            writers=writers,
            now=lambda: NOW,
            limits=RecordingLimits(max_waiting=MAX_WAITING, handshake_pauses=(0.0, 0.0)),
        )

    def record(self, *outcomes: Outcome, seconds: float = SECONDS) -> list[tuple[str, str]]:
        """Record the outcomes of a delivery; return the writes."""
        batch = self.recorder.begin()
        for one in outcomes:
            batch.add(one)
        batch.finish(Deadline.after(seconds))
        return self.connections.writes


def outcome(to: Recipient, result: tuple[Result, str], tries: int = 1) -> Outcome:
    return Outcome(to, FRAME, *result, tries)


@pytest.mark.parametrize(
    ("result", "tries", "writes"),
    [
        (DELIVERED, 1, [("revive", "c")]),
        (GONE, 1, [("remove", "c")]),
        ((Result.REJECTED, "http_403"), 1, [("remove", "c")]),
        (STALE, 4, [("mark_stale", "c")]),
        ((Result.STALE, "deadline"), 0, []),
    ],
)
def test_each_result_has_its_write(
    result: tuple[Result, str], tries: int, writes: list[tuple[str, str]]
) -> None:
    assert Recording().record(outcome(recipient("c"), result, tries)) == writes


def test_the_frames_of_one_recipient_are_recorded_once() -> None:
    first, second = recipient("c"), recipient("d")
    outcomes = [outcome(first, GONE), outcome(first, GONE), outcome(second, GONE)]
    assert Recording().record(*outcomes) == [("remove", "c"), ("remove", "d")]


def test_storage_that_fails_is_logged_and_the_others_are_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recording = Recording(failing=["c"])
    writes = recording.record(outcome(recipient("c"), GONE), outcome(recipient("d"), GONE))
    assert writes == [("remove", "d")]
    assert "could not record that" in caplog.text


def test_outcomes_that_are_not_recorded_by_the_deadline_are_dropped_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recording = Recording(writers=StuckExecutor())
    outcomes = [outcome(recipient(name), STALE) for name in ("c", "d")]
    assert recording.record(*outcomes, seconds=0.0) == []
    assert "2 outcomes were not recorded in time" in caplog.text


@pytest.mark.timeout(10)
def test_an_outcome_waits_only_while_as_many_others_as_allowed_are_being_recorded() -> None:
    recording = Recording(writers=ThreadPoolExecutor(MAX_WAITING))
    stuck, others = threading.Event(), threading.Semaphore(0)
    mark_stale = recording.connections.mark_stale

    def slow_for_one(connection_id: str, now: EpochMs) -> None:
        if connection_id == "stuck":
            assert stuck.wait(SECONDS)
        mark_stale(connection_id, now)
        others.release()

    recording.connections.mark_stale = slow_for_one  # type: ignore[method-assign]
    batch = recording.recorder.begin()
    batch.add(outcome(recipient("stuck"), STALE))
    for name in "abcd":
        batch.add(outcome(recipient(name), STALE))
    for _ in "abcd":
        assert others.acquire(timeout=SECONDS)
    stuck.set()
    batch.finish(Deadline.after(SECONDS))
    assert sorted(name for _, name in recording.connections.writes) == [*"abcd", "stuck"]


# --- Rejected connections


def test_the_socket_of_a_rejected_connection_is_closed_before_it_is_removed() -> None:
    recording = Recording()
    writes = recording.record(outcome(recipient("c"), (Result.REJECTED, "http_400")))
    assert recording.delivery.sent == [("c", "DELETE")]
    assert writes == [("remove", "c")]


def test_a_rejected_connection_whose_socket_cannot_be_closed_stays() -> None:
    recording = Recording(delivery=FakeDelivery(c=STALE))
    assert recording.record(outcome(recipient("c"), (Result.REJECTED, "http_400"))) == []
    assert recording.notifier.removed == []


# --- Notices


def test_users_are_notified_of_rejected_connections_only() -> None:
    recording = Recording()
    rejected = recipient("rejected")
    recording.record(
        outcome(rejected, (Result.REJECTED, "http_403")),
        outcome(recipient("gone"), GONE),
        outcome(recipient("stale"), STALE),
    )
    assert recording.notifier.removed == [Removed(rejected, "http_403")]


def test_a_rejected_notice_is_recorded_and_causes_no_further_notice() -> None:
    rejected = (Result.REJECTED, "http_403")
    recording = Recording(notices=[outcome(recipient("other"), rejected)])
    writes = recording.record(outcome(recipient("c"), rejected))
    assert writes == [("remove", "c"), ("remove", "other")]
    assert [one.recipient.connection_id for one in recording.notifier.removed] == ["c"]


# --- Handshakes


@pytest.mark.parametrize(
    ("probes", "writes"),
    [
        ([DELIVERED], []),
        ([GONE, DELIVERED], []),
        ([GONE], [("remove", "c")]),
        ([STALE], [("mark_stale", "c")]),
        ([(Result.REJECTED, "http_403")], [("mark_stale", "c")]),
        ([(Result.STALE, "http_501")], [("remove", "c")]),
    ],
)
def test_a_connection_in_its_handshake_is_probed_before_it_is_removed(
    probes: list[tuple[Result, str]], writes: list[tuple[str, str]]
) -> None:
    recording = Recording(delivery=FakeDelivery(c=probes))
    assert recording.record(outcome(recipient("c", age_ms=1000), GONE)) == writes
    assert set(recording.delivery.sent) == {("c", "GET")}


# --- Probes


def test_a_probe_returns_and_records_its_outcomes() -> None:
    recording = Recording(delivery=FakeDelivery(gone=GONE))
    recipients = [recipient("open"), recipient("gone")]
    outcomes = recording.recorder.probe(recipients, Deadline.after(SECONDS))
    assert [one.result for one in outcomes] == [Result.DELIVERED, Result.GONE]
    assert recording.connections.writes == [("revive", "open"), ("remove", "gone")]
