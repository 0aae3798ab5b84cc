"""The frames, reports and consequences of a broadcast."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from chalicelib.clock import EpochMs
from chalicelib.delivery.broadcast import MAX_EXPIRED, Broadcaster
from chalicelib.delivery.frames import Framer
from chalicelib.delivery.parcel import RECORDING_SECONDS, Outcome, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Interrupted, Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.audience import Page
from chalicelib.store.items import Recipient
from tests.unit.delivery.fakes import FakeDelivery, recipient

GONE = (Result.GONE, "gone")
SECONDS = 20.0
MESSAGES = [
    Message(
        id=name,
        sender="alice",
        timestamp=EpochMs(1),
        audience=Audience(AudienceKind.ALL),
        type="t",
        data=name,
    )
    for name in ("first", "second")
]


class Broadcast:
    """A Broadcaster over fakes; records the calls of the recorder and the disconnector."""

    def __init__(self, delivery: FakeDelivery | None = None) -> None:
        this: Any = self  # stands in for OutcomeRecorder, OutcomeBatch and Disconnector
        self.delivery = delivery or FakeDelivery()
        self.failures: list[Outcome] = []
        self.finished = False
        self.expired: list[Recipient] = []
        self.framer = Framer(MESSAGES, 32_768, None, Encryption(None))
        self.deadline = Deadline.after(SECONDS)
        self.broadcaster = Broadcaster(
            delivery=self.delivery,
            outcome_recorder=this,
            disconnector=this,
            metrics=Metrics("test"),
        )

    def send(self, pages: Iterable[Page], *throttle: Any) -> list[dict[str, object]]:
        reports = self.broadcaster.send(self.framer, pages, self.deadline, *throttle)
        return [report.to_dict() for report in reports]

    def begin(self) -> Any:
        return self

    def add(self, outcome: Outcome) -> None:
        self.failures.append(outcome)

    def finish(self, deadline: Deadline) -> None:
        self.finished = True

    def disconnect_expired(self, recipients: list[Recipient], deadline: Deadline) -> None:
        assert self.finished
        self.expired += recipients


def page(*recipients: tuple[Recipient, int]) -> Page:
    return Page(list(recipients), None)


def test_each_message_is_reported_for_its_own_recipients() -> None:
    test = Broadcast(FakeDelivery(c2=GONE))
    reports = test.send(
        [page((recipient("c1"), 0b11)), page((recipient("c2"), 0b01), (recipient("c3"), 0b10))]
    )
    failed = {"connectionId": "c2", "userId": "alice", "reason": "gone"}
    counts = {"stale": 0, "rejected": 0}
    assert reports == [
        {"id": "first", "recipients": 2, "delivered": 1, "gone": 1, **counts, "failed": [failed]},
        {"id": "second", "recipients": 2, "delivered": 2, "gone": 0, **counts, "failed": []},
    ]


def test_only_failures_are_recorded() -> None:
    test = Broadcast(FakeDelivery(c2=GONE))
    test.send([page((recipient("c1"), 1), (recipient("c2"), 1))])
    assert [one.recipient.connection_id for one in test.failures] == ["c2"]
    assert test.finished


def test_part_of_the_deadline_is_left_for_recording() -> None:
    test = Broadcast()
    test.send([])
    assert [one.at for one in test.delivery.deadlines] == [test.deadline.at - RECORDING_SECONDS]


def test_a_recipient_whose_token_has_expired_gets_no_frame_and_is_disconnected() -> None:
    test = Broadcast()
    expired = recipient("old")._replace(token_until=time.time() - 1)
    [first, _] = test.send([page((expired, 1), (recipient("new"), 1))])
    assert [connection_id for connection_id, _ in test.delivery.sent] == ["new"]
    assert first["recipients"] == 1
    assert test.expired == [expired]


def test_one_broadcast_disconnects_a_limited_number_of_clients() -> None:
    test = Broadcast()
    expired = recipient("old")._replace(token_until=0.0)
    test.send([page(*[(expired, 1)] * (MAX_EXPIRED + 1))])
    assert len(test.expired) == MAX_EXPIRED


def test_a_throttle_decides_which_parcels_are_sent_together() -> None:
    test = Broadcast()
    portions: list[int] = []

    def throttle(parcels: list[Parcel]) -> Iterator[list[Parcel]]:
        for parcel in parcels:
            portions.append(len(parcels))
            yield [parcel]

    test.send([page((recipient("c1"), 1), (recipient("c2"), 1))], throttle)
    assert portions == [2, 2]
    assert [connection_id for connection_id, _ in test.delivery.sent] == ["c1", "c2"]


def test_pages_that_break_off_raise_interrupted_with_the_reports_so_far() -> None:
    test = Broadcast(FakeDelivery(c1=GONE))

    def pages() -> Iterator[Page]:
        yield page((recipient("c1"), 1))
        raise Unavailable("storage failed")

    with pytest.raises(Interrupted) as interrupted:
        test.send(pages())
    assert [sum(one.counts.values()) for one in interrupted.value.reports] == [1, 0]
    assert interrupted.value.detail == "storage failed"
    assert test.finished
