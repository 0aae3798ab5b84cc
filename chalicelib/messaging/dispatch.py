"""Dispatch: deliver a request's messages before it is answered, or put them into the queue."""

import logging
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import Clock
from chalicelib.delivery.broadcast import Broadcaster, Throttle
from chalicelib.delivery.frames import Framer, Framing
from chalicelib.delivery.parcel import RECORDING_SECONDS, Parcel
from chalicelib.fanout.publisher import FanoutPublisher
from chalicelib.fanout.rate import FanoutRateLimiter
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.cost import Bill, sent_copies, stored_copies, units_of
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Interrupted, Queued, Report
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.audience import Audiences, Page
from chalicelib.store.history import History
from chalicelib.store.users import Users

logger = logging.getLogger("herald.dispatch")

READING_SECONDS = 10.0  # an audience that isn't fully read by then is queued, however small
WRITTEN_AT_ONCE_MS = 500  # a request that takes longer is large, or storage is slow
FREE_FRAMES = 100  # of a request, which inline delivery sends without reserving time for them


class _ReadAhead(NamedTuple):
    """The first pages of an audience, the frames that their recipients get, and whether they are
    all."""

    pages: Sequence[Page]
    frames: int
    complete: bool


class Dispatcher:
    """Sends messages, as far as their sender's scopes allow it."""

    def __init__(
        self,
        *,
        audiences: Audiences,
        broadcaster: Broadcaster,
        publisher: FanoutPublisher | None,
        history: History,
        users: Users,
        framing: Framing,
        rate_limiter: FanoutRateLimiter,
        inline_frames: int,
        connections_per_user: int,
        now: Clock,
        metrics: Metrics,
    ) -> None:
        """Take the parts and the limits.

        Args:
            publisher: Queues messages that take more than `inline_frames` frames. Without it, all
                messages are delivered inline.
            users: Charges senders for what they send.
            connections_per_user: The most connections that a user can have.
        """
        self._audiences = audiences
        self._broadcaster = broadcaster
        self._publisher = publisher
        self._history = history
        self._users = users
        self._framing = framing
        self._rate_limiter = rate_limiter
        self._inline_frames = inline_frames
        self._connections_per_user = connections_per_user
        self._now = now
        self._metrics = metrics

    def units(self, messages: Sequence[Message]) -> int:
        """Return the units to charge before `send`: what is known without the audience."""
        return units_of(self._history.copies(messages))

    def send(
        self, messages: Sequence[Message], sender: Principal, deadline: Deadline, *, paid: int = 1
    ) -> Sequence[Report | Queued]:
        """Deliver the messages of one request, or queue all of them.

        The sender is charged for frames that `paid` doesn't cover before they are sent.

        Args:
            deadline: When delivery must end.
            paid: The units that the sender has been charged; see `units`.

        Returns:
            A report for each message, or for each a note that it is queued.

        Raises:
            Forbidden, PayloadTooLarge, Unavailable: Nothing was sent.
            Interrupted: See `Broadcaster.send`.
        """
        for message in messages:
            sender.require(_scope_for(message))
        framer = self._framing.framer(messages, sender.tenant)
        audiences = [message.audience for message in messages]
        # First the history, then the recipients: a client that connects in between can resume.
        unstored = self._store(messages, sender, paid)
        _log_accepted(messages, sender, size=framer.size, units=paid)
        pages: Iterable[Page] = self._audiences.pages(audiences, sender.tenant)
        if self._publisher is not None and self._may_exceed_inline(framer, audiences):
            read = self._read_ahead(framer, iter(pages), deadline)
            if not read.complete:
                # A frame is at least a copy. The workers charge for what is more.
                paid = self._charge_queued(messages, sender, paid, read.frames)
                return self._queue(self._publisher, messages, sender, paid, unstored)
            pages = read.pages
        started = time.monotonic()
        throttle = self._throttle(Bill(messages=len(messages), paid=paid), sender, deadline)
        try:
            reports = self._broadcaster.send(framer, pages, deadline, throttle)
        except Interrupted as interrupted:
            _note_unstored(interrupted.reports, unstored)
            raise
        _note_unstored(reports, unstored)
        self._metrics.count("MessagesAccepted", len(messages))
        self._metrics.value("FanoutDuration", (time.monotonic() - started) * 1000)
        return reports

    def _store(self, messages: Sequence[Message], sender: Principal, paid: int) -> frozenset[str]:
        """Put messages into the history; return the ids of those that it could not keep.

        A large request is written slowly. Its sender pays for it when it has been written, not
        meanwhile.
        """
        begun = self._now()
        unstored = self._history.append(messages, sender.tenant)
        written = self._now()
        if paid > 1 and written - begun > WRITTEN_AT_ONCE_MS:
            self._users.owe_at_least(sender.key, written, paid)
        return unstored

    def _queue(
        self,
        publisher: FanoutPublisher,
        messages: Sequence[Message],
        sender: Principal,
        paid: int,
        unstored: frozenset[str],
    ) -> Sequence[Queued]:
        kept = [message for message in messages if message.id not in unstored]
        # Without this note a resume may miss a message that is in its stream.
        unstored |= self._history.mark_delayed(kept, sender.tenant)
        queued = publisher.publish(messages, sender, paid)
        self._metrics.count("MessagesAccepted", len(messages))
        self._metrics.count("FanoutQueued", len(messages))
        return [one._replace(stored=one.id not in unstored) for one in queued]

    def _charge_queued(
        self, messages: Sequence[Message], sender: Principal, paid: int, frames: int
    ) -> int:
        """Charge what is known of a request that is queued; return the units that are paid then."""
        known = max(frames, stored_copies(messages))
        debt = Bill(messages=len(messages), paid=paid).add(known)
        if debt is None:
            return paid
        self._users.owe(sender.key, self._now(), debt)
        return paid + debt.units

    def _throttle(self, bill: Bill, sender: Principal, deadline: Deadline) -> Throttle:
        """Return what charges the sender for a page of parcels, then yields these in time.

        What is paid for already comes first: it is sent while the sender is charged for the rest.
        What would be too late is not held back, so that it is reported as stale.
        """
        until = deadline.earlier(RECORDING_SECONDS)
        pace = self._rate_limiter.for_tenant(sender.tenant, until, free_frames=FREE_FRAMES)

        def throttle(parcels: list[Parcel]) -> Iterator[list[Parcel]]:
            copies = [
                sum(sent_copies(len(frame.body)) for frame in parcel.frames) for parcel in parcels
            ]
            covered = bisect_right(list(accumulate(copies)), bill.room)
            for part in (slice(covered), slice(covered, None)):
                if not copies[part]:
                    continue
                debt = bill.add(sum(copies[part]))
                if debt is not None:
                    self._users.owe(sender.key, self._now(), debt)
                yield from pace.throttle(parcels[part])

        return throttle

    def _may_exceed_inline(self, framer: Framer, audiences: Sequence[Audience]) -> bool:
        """Return whether the audiences could take too many frames for inline delivery.

        If they can't, sending begins with the first page, before the others are read.
        """
        most = 0
        for audience in audiences:
            match audience.kind:
                case AudienceKind.USERS:
                    most += len(audience.names) * self._connections_per_user
                case AudienceKind.CONNECTIONS:
                    most += len(audience.names)
                case _:
                    return True
        return most * framer.most_frames > self._inline_frames

    def _read_ahead(self, framer: Framer, pages: Iterator[Page], deadline: Deadline) -> _ReadAhead:
        """Read pages until there is one frame too many for inline delivery, or time is up.

        Incomplete pages are dropped: the workers read the audience from its start, since jobs can
        share a read only if they start alike.
        """
        until = deadline.within(READING_SECONDS)
        read: list[Page] = []
        frames = 0
        for page in pages:
            read.append(page)
            frames += sum(framer.count(selection) for _, selection in page.recipients)
            late = until.passed() and page.position is not None
            if late or frames > self._inline_frames:
                return _ReadAhead(read, frames, complete=False)
        return _ReadAhead(read, frames, complete=True)


def _note_unstored(reports: Iterable[Report], unstored: frozenset[str]) -> None:
    for report in reports:
        report.stored = report.id not in unstored


def _log_accepted(messages: Sequence[Message], sender: Principal, *, size: int, units: int) -> None:
    """Log a request with its `units` so far; those of its frames come later."""
    logger.info(
        "accepted",
        extra={
            "tenant": sender.tenant or "",
            "sender": sender.user_id,
            "messageIds": [message.id for message in messages],
            "audiences": sorted({message.audience.kind for message in messages}),
            "bytes": size,
            "units": units,
        },
    )


def _scope_for(message: Message) -> Scope:
    if message.audience.kind is AudienceKind.ALL:
        return Scope.MESSAGES_BROADCAST
    return Scope.MESSAGES_SEND
