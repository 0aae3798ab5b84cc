"""Messages are kept in the history, then delivered inline or queued, by their audience's size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs
from chalicelib.delivery.broadcast import Throttle
from chalicelib.delivery.frames import Framer, Framing
from chalicelib.delivery.parcel import Parcel
from chalicelib.errors import InsufficientScope, PayloadTooLarge, Unavailable
from chalicelib.fanout.rate import TenantThrottle
from chalicelib.messaging.dispatch import Dispatcher
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.cost import Debt, written_copies
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Interrupted, Queued, Report, Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.audience import Page
from tests.support.tables import recipient

INLINE = 4
PER_USER = 2
NEVER = 1e9
ALICE = Principal("alice", 10**12, scopes=frozenset({Scope.MESSAGES_SEND}))
BROADCASTER = Principal(
    "alice", 10**12, scopes=frozenset({Scope.MESSAGES_SEND, Scope.MESSAGES_BROADCAST})
)


@dataclass
class Parts:
    """Stands in for the parts of a Dispatcher, and records their calls in `calls`.

    The audience has a page for each number in `pages_of`, with that many recipients. Each gets all
    messages. `full` has the ids of messages for which the history has no room.
    """

    pages_of: Sequence[int] = (1,)
    full: frozenset[str] = frozenset()
    undelayed: frozenset[str] = frozenset()
    calls: list[str] = field(default_factory=list)
    debts: list[Debt] = field(default_factory=list)
    owed_at_least: list[tuple[int, int]] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)
    published_for: int = 0
    selection: int = 1
    interrupted: bool = False
    keeps: bool = True
    per_second: int = 1000
    now: int = 1
    writing_ms: int = 0

    def pages(self, audiences: Sequence[Audience], tenant: str | None) -> Iterator[Page]:
        last = len(self.pages_of) - 1
        for number, count in enumerate(self.pages_of):
            self.calls.append("page")
            found = [
                (recipient(f"c-{number}-{one}", "bob"), self.selection) for one in range(count)
            ]
            yield Page(found, None if number == last else str(number))

    def copies(self, messages: Sequence[Message]) -> int:
        return written_copies(messages) if self.keeps else 0

    def append(self, messages: Sequence[Message], tenant: str | None) -> frozenset[str]:
        self.calls.append("append")
        self.now += self.writing_ms
        return self.full

    def mark_delayed(self, messages: Sequence[Message], tenant: str | None) -> frozenset[str]:
        self.calls.append("mark_delayed")
        assert not self.full & {message.id for message in messages}
        return self.undelayed

    def owe(self, user_key: str, now: EpochMs, debt: Debt) -> None:
        assert user_key == ALICE.key
        self.calls.append("owe")
        self.debts.append(debt)

    def owe_at_least(self, user_key: str, now: EpochMs, units: int) -> None:
        assert user_key == ALICE.key
        self.owed_at_least.append((now, units))

    def for_tenant(self, tenant: str | None, until: Deadline, *, free_frames: int) -> Any:
        limiter: Any = self
        return TenantThrottle(limiter, tenant, until, free_frames)

    def step(self) -> int:
        return 1000

    def wait(self, tenant: str | None, frames: int, until: Deadline) -> None:
        self.reserved.append(frames)

    def send(
        self, framer: Framer, pages: Any, deadline: Deadline, throttle: Throttle
    ) -> list[Report]:
        self.calls.append("send")
        reports = [Report(message.id) for message in framer.messages]
        for page in pages:
            parcels = [Parcel(one, framer.frames(bits, "")) for one, bits in page.recipients]
            for portion in throttle(parcels):
                for parcel in portion:
                    reports[0].add(parcel.recipient.connection_id, "", Result.DELIVERED, "")
        if self.interrupted:
            raise Interrupted(Unavailable("storage is unreachable"), reports)
        return reports

    def publish(self, messages: Sequence[Message], sender: Principal, paid: int) -> list[Queued]:
        self.calls.append("publish")
        self.published_for = paid
        return [Queued(message.id) for message in messages]


def message(kind: AudienceKind, *names: str, data: object = 1) -> Message:
    return Message(
        id="id",
        sender="alice",
        timestamp=EpochMs(1),
        audience=Audience(kind, names),
        type="message",
        data=data,
    )


EVERYBODY = message(AudienceKind.ALL)
GROUP = message(AudienceKind.GROUPS, "team")


def send(
    parts: Any,
    *messages: Message,
    sender: Principal = BROADCASTER,
    queue: bool = True,
    seconds: float = NEVER,
    inline: int = INLINE,
) -> Any:
    dispatcher = Dispatcher(
        audiences=parts,
        broadcaster=parts,
        publisher=parts if queue else None,
        history=parts,
        users=parts,
        framing=Framing(32768, Encryption(None)),
        rate_limiter=parts,
        inline_frames=inline,
        connections_per_user=PER_USER,
        now=lambda: EpochMs(parts.now),
        metrics=Metrics("test"),
    )
    paid = dispatcher.units(messages)
    return dispatcher.send(messages, sender, Deadline.after(seconds), paid=paid)


# --- Refused messages


def test_a_message_to_all_needs_a_scope_of_its_own() -> None:
    parts = Parts()
    with pytest.raises(InsufficientScope, match="messages:broadcast"):
        send(parts, GROUP, EVERYBODY, sender=ALICE)
    assert parts.calls == []


def test_a_message_that_is_too_large_is_refused_before_it_is_kept() -> None:
    parts = Parts()
    with pytest.raises(PayloadTooLarge):
        send(parts, message(AudienceKind.GROUPS, "team", data="x" * 128 * 1024))
    assert parts.calls == []


# --- Inline or queued


def test_a_small_audience_is_delivered_inline() -> None:
    parts = Parts(pages_of=(2, 2))
    [report] = send(parts, GROUP)
    assert report.counts[Result.DELIVERED] == 4
    assert parts.calls == ["append", "page", "page", "send"]


def test_a_large_audience_is_queued_as_soon_as_it_is_known_to_be_large() -> None:
    parts = Parts(pages_of=(2, 3, 9))
    assert send(parts, GROUP) == [Queued("id")]
    assert parts.calls == ["append", "page", "page", "mark_delayed", "publish"]


def test_without_a_queue_a_large_audience_is_delivered_inline() -> None:
    parts = Parts(pages_of=(2, 3, 9))
    [report] = send(parts, EVERYBODY, queue=False)
    assert report.counts[Result.DELIVERED] == 14
    assert parts.calls == ["append", "send", "page", "page", "page"]


@pytest.mark.parametrize(
    "small",
    [
        message(AudienceKind.USERS, *"ab"),
        message(AudienceKind.CONNECTIONS, *"abcd"),
    ],
)
def test_an_audience_that_cannot_be_large_is_delivered_while_it_is_read(small: Message) -> None:
    parts = Parts(pages_of=(2, 2))
    send(parts, small)
    assert parts.calls == ["append", "send", "page", "page"]


@pytest.mark.parametrize(
    "large",
    [
        [message(AudienceKind.USERS, *"abc")],
        [message(AudienceKind.CONNECTIONS, *"abcde")],
        [message(AudienceKind.USERS, "a"), message(AudienceKind.CONNECTIONS, *"abc")],
    ],
)
def test_an_audience_that_may_be_large_is_read_before_it_is_delivered(large: list[Message]) -> None:
    parts = Parts()
    send(parts, *large)
    assert parts.calls == ["append", "page", "send"]


@pytest.mark.parametrize("unread", [1, 0])
def test_an_audience_that_cannot_be_read_in_time_is_queued(unread: int) -> None:
    parts = Parts(pages_of=(1,) * (1 + unread))
    send(parts, GROUP, seconds=0.0)
    last = ["mark_delayed", "publish"] if unread else ["send"]
    assert parts.calls == ["append", "page", *last]


@pytest.mark.parametrize(("size", "queued"), [(10, False), (20_000, True)])
def test_frames_and_not_recipients_decide_what_is_queued(size: int, queued: bool) -> None:
    """Three messages fit into one frame, or need three."""
    parts = Parts(pages_of=(2,), selection=0b111)
    three = [message(AudienceKind.GROUPS, "team", data="x" * size) for _ in range(3)]
    send(parts, *three)
    assert ("publish" in parts.calls) == queued


def test_frames_count_for_users_whose_connections_are_not_known_yet() -> None:
    large = [message(AudienceKind.USERS, "a", data="x" * 20_000) for _ in range(3)]
    parts = Parts(pages_of=(1,), selection=0b111)
    send(parts, *large)
    assert parts.calls == ["append", "page", "send"]


# --- What it costs


def test_a_sender_pays_for_frames_before_they_are_sent() -> None:
    parts = Parts(pages_of=(150, 49, 1, 1))
    send(parts, EVERYBODY, queue=False)
    assert parts.debts == [Debt(1, 1), Debt(1, 1)]
    assert parts.calls == ["append", "send", "page", "owe", "page", "page", "page", "owe"]


def test_a_frame_counts_once_for_each_32_kb() -> None:
    parts = Parts(pages_of=(100,))
    send(parts, message(AudienceKind.ALL, data="x" * 100_000), queue=False)
    assert parts.debts == [Debt(3, 3)]


def test_frames_that_cost_no_more_than_the_writes_are_paid_already() -> None:
    parts = Parts(pages_of=(250, 50))
    names = [message(AudienceKind.GROUPS, *(f"g{n}" for n in range(100))) for _ in range(3)]
    send(parts, *names, queue=False)
    assert parts.debts == []


def test_a_queued_request_is_published_with_what_was_paid() -> None:
    parts = Parts(pages_of=(9,))
    send(parts, *[message(AudienceKind.GROUPS, *(f"g{n}" for n in range(100)))] * 2)
    assert parts.published_for == 2
    assert parts.debts == []


def test_a_queued_request_costs_at_least_what_is_stored_for_the_workers() -> None:
    """Ten messages of 100 KB to connections, which the history doesn't keep."""
    parts = Parts(pages_of=(9,), selection=0b1111111111)
    large = message(AudienceKind.GROUPS, "team", data="x" * 101_000)
    large = replace(large, stored=False)
    parts.keeps = False
    send(parts, *[large] * 10)
    assert parts.debts == [Debt(9, 0)]
    assert parts.published_for == 10


@pytest.mark.parametrize(
    ("writing_ms", "messages", "owed"),
    [(5000, 100, [(5001, 100)]), (501, 2, [(502, 2)]), (400, 100, []), (5000, 1, [])],
)
def test_a_large_request_is_paid_for_after_it_was_written(
    writing_ms: int, messages: int, owed: list[tuple[int, int]]
) -> None:
    parts = Parts(pages_of=(0,), writing_ms=writing_ms)
    names = [f"nobody-{number}" for number in range(100)]
    send(parts, *[message(AudienceKind.USERS, *names)] * messages)
    assert parts.owed_at_least == owed
    assert parts.debts == []


def test_the_frames_that_are_known_are_paid_for_before_a_request_is_queued() -> None:
    parts = Parts(pages_of=(150, 150, 150, 150))
    send(parts, EVERYBODY, inline=400)
    assert parts.debts == [Debt(4, 4)]
    assert parts.published_for == 5


def test_the_first_hundred_frames_are_not_held_back() -> None:
    parts = Parts(pages_of=(60, 60, 60))
    send(parts, EVERYBODY, queue=False)
    assert sum(parts.reserved) == 80


def test_a_small_request_reserves_nothing() -> None:
    parts = Parts(pages_of=(100,))
    send(parts, EVERYBODY, queue=False)
    assert parts.reserved == []


# --- What the history could not keep


def test_a_message_without_room_in_the_history_is_delivered_and_reported() -> None:
    parts = Parts(pages_of=(2,), full=frozenset({"id"}))
    [report] = send(parts, GROUP)
    assert report.counts[Result.DELIVERED] == 2
    assert report.to_dict()["stored"] is False
    [report] = send(Parts(), GROUP)
    assert "stored" not in report.to_dict()


def test_a_queued_message_without_room_in_the_history_is_reported() -> None:
    parts = Parts(pages_of=(9,), full=frozenset({"id"}))
    assert send(parts, GROUP) == [Queued("id", stored=False)]
    assert parts.calls[-2:] == ["mark_delayed", "publish"]


def test_a_queued_message_whose_delay_could_not_be_noted_is_reported() -> None:
    parts = Parts(pages_of=(9,), undelayed=frozenset({"id"}))
    assert send(parts, GROUP) == [Queued("id", stored=False)]


def test_a_delivery_that_breaks_off_reports_what_was_not_stored() -> None:
    parts = Parts(interrupted=True, full=frozenset({"id"}))
    with pytest.raises(Interrupted) as interrupted:
        send(parts, GROUP)
    assert [report.stored for report in interrupted.value.reports] == [False]
