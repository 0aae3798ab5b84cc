"""Records the outcomes of deliveries and probes: in the log, in the tables, and as notices."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from typing import NamedTuple

from chalicelib.clock import Clock
from chalicelib.delivery.disconnect import HANDSHAKE_PAUSES, Disconnector
from chalicelib.delivery.frames import PROBE
from chalicelib.delivery.notices import Notifier, Removed
from chalicelib.delivery.parcel import RECORDING_SECONDS, Delivery, Outcome, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.connections import Connections
from chalicelib.store.items import Recipient

logger = logging.getLogger("herald.delivery")


class RecordingLimits(NamedTuple):
    """The bounds of a recorder."""

    max_waiting: int = 10_000
    """Outcomes that wait to be recorded; with more, `OutcomeBatch.add` blocks."""

    handshake_pauses: tuple[float, ...] = HANDSHAKE_PAUSES


DEFAULT_LIMITS = RecordingLimits()


class OutcomeRecorder:
    """Updates the connections after deliveries: removes, marks as stale, or revives them."""

    def __init__(
        self,
        *,
        connections: Connections,
        delivery: Delivery,
        disconnector: Disconnector,
        notifier: Notifier,
        writers: Executor,
        now: Clock,
        limits: RecordingLimits = DEFAULT_LIMITS,
    ) -> None:
        """Take the parts. `writers` runs the writes."""
        self.limits = limits
        self._connections = connections
        self._delivery = delivery
        self._disconnector = disconnector
        self._notifier = notifier
        self._writers = writers
        self._now = now

    def begin(self) -> "OutcomeBatch":
        """Return an empty batch, for the outcomes of one delivery."""
        return OutcomeBatch(self)

    def probe(self, recipients: Sequence[Recipient], deadline: Deadline) -> list[Outcome]:
        """Probe whether sockets are open, record the outcomes, and return them."""
        batch = self.begin()
        outcomes = self.send_probes(recipients, deadline.earlier(RECORDING_SECONDS))
        for outcome in outcomes:
            batch.add(outcome)
        batch.finish(deadline)
        return outcomes

    def send_probes(self, recipients: Sequence[Recipient], deadline: Deadline) -> list[Outcome]:
        """Probe whether sockets are open; return the outcomes without recording them."""
        parcels = [Parcel(recipient, (PROBE,)) for recipient in recipients]
        return list(self._delivery.deliver([parcels], deadline))

    def is_unconfirmed(self, outcome: Outcome) -> bool:
        """Return whether a `gone` socket may still be in its handshake.

        `@connections` answers 410 until the `$connect` of a connection has ended.
        """
        return outcome.result is Result.GONE and outcome.recipient.may_be_in_handshake(self._now())

    def close_sockets(self, recipients: Sequence[Recipient], deadline: Deadline) -> list[Recipient]:
        """Close sockets; return the recipients whose sockets are closed."""
        return self._disconnector.close_sockets(recipients, deadline)

    def notify_removed(self, removed: Sequence[Removed], deadline: Deadline) -> Iterator[Outcome]:
        """Notify the users of removed connections; yield the outcomes of the notices."""
        return self._notifier.notify_removed(removed, deadline)

    def record(self, outcome: Outcome) -> "Future[None]":
        """Record an outcome in another thread. Errors are logged."""
        return self._writers.submit(self._record, outcome)

    def _record(self, outcome: Outcome) -> None:
        recipient = outcome.recipient
        if outcome.result is not Result.DELIVERED:
            _log(outcome)
        try:
            if outcome.result is Result.DELIVERED:
                self._connections.revive(recipient.connection_id, self._now())
            elif outcome.result is not Result.STALE:
                self._connections.remove(recipient, self._now())
            elif outcome.tries:
                self._connections.mark_stale(recipient.connection_id, self._now())
        except Unavailable:
            # The report is right all the same, and the next delivery will have the same outcome.
            logger.warning("could not record that %s is %s", recipient, outcome.result)
        except Exception:
            logger.exception("could not record that %s is %s", recipient, outcome.result)


class OutcomeBatch:
    """The outcomes of one delivery, recorded while it goes on."""

    def __init__(self, recorder: OutcomeRecorder) -> None:
        self._recorder = recorder
        self._waiting: set[Future[None]] = set()
        self._room = threading.Semaphore(recorder.limits.max_waiting)
        self._last: Outcome | None = None
        self._unconfirmed: list[Outcome] = []
        self._rejected: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Record a failure, or a successful probe, in another thread.

        Consecutive outcomes of one recipient are recorded once: the frames after a failed one get
        the same result. Rejected ones wait for `finish`, since their sockets have to be closed.
        """
        if self._last is not None and outcome.recipient is self._last.recipient:
            return
        self._last = outcome
        if outcome.result is Result.REJECTED:
            self._rejected.append(outcome)
        elif self._recorder.is_unconfirmed(outcome):
            self._unconfirmed.append(outcome)
        else:
            self._record(outcome)

    def finish(self, deadline: Deadline) -> None:
        """Wait until everything is recorded, and notify the users of rejected connections.

        Outcomes that are not recorded by the deadline are dropped: the next delivery will have the
        same ones.
        """
        self._wait(deadline)
        if removed := self._remove_rejected(deadline):
            for outcome in self._recorder.notify_removed(removed, deadline):
                if outcome.result is not Result.DELIVERED:
                    self.add(outcome)
            self._remove_rejected(deadline)  # without notices: these are the outcomes of notices
        if self._unconfirmed:
            self._confirm(deadline)
        self._wait(deadline)

    def _remove_rejected(self, deadline: Deadline) -> list[Removed]:
        """Close the sockets of rejected connections, then remove these; return them.

        A connection whose socket could not be closed stays: the next delivery finds it again.
        """
        rejected, self._rejected = self._rejected, []
        recipients = [outcome.recipient for outcome in rejected]
        closed = {one.connection_id for one in self._recorder.close_sockets(recipients, deadline)}
        removed: list[Removed] = []
        for outcome in rejected:
            if outcome.recipient.connection_id in closed:
                self._record(outcome)
                removed.append(Removed(outcome.recipient, outcome.reason))
        return removed

    def _confirm(self, deadline: Deadline) -> None:
        """Probe the unconfirmed connections again, and record those that are still gone.

        Removing a connection whose `$connect` is about to end would leave an open socket to which
        nothing is ever sent.
        """
        unconfirmed = {outcome.recipient.connection_id: outcome for outcome in self._unconfirmed}
        self._unconfirmed = []
        probes: list[Outcome] = []
        for pause in self._recorder.limits.handshake_pauses:
            time.sleep(min(pause, deadline.left()))
            recipients = [outcome.recipient for outcome in unconfirmed.values()]
            probes = self._recorder.send_probes(recipients, deadline)
            for probe in probes:
                if probe.result is Result.DELIVERED:
                    del unconfirmed[probe.recipient.connection_id]
            if not unconfirmed:
                return
        for probe in probes:
            outcome = unconfirmed.get(probe.recipient.connection_id)
            if outcome is None:
                continue
            # A failed probe proves nothing, so the sweep decides later. But some emulators do not
            # implement GET: there the first outcome counts.
            if probe.result is not Result.GONE and probe.reason != "http_501":
                outcome = outcome._replace(result=Result.STALE, reason=probe.reason)
            self._record(outcome)

    def _record(self, outcome: Outcome) -> None:
        self._room.acquire()
        future = self._recorder.record(outcome)
        self._waiting.add(future)
        future.add_done_callback(self._on_recorded)

    def _on_recorded(self, future: "Future[None]") -> None:
        self._waiting.discard(future)
        self._room.release()

    def _wait(self, deadline: Deadline) -> None:
        late = wait(self._waiting.copy(), timeout=deadline.left()).not_done
        dropped = sum(future.cancel() for future in late)
        if dropped:
            logger.warning("%d outcomes were not recorded in time", dropped)
        self._waiting.clear()


def _log(outcome: Outcome) -> None:
    recipient = outcome.recipient
    logger.info(
        "not delivered",
        extra={
            "connectionId": recipient.connection_id,
            "userId": recipient.user_id,
            "tenant": recipient.tenant or "",
            "senders": sorted({message.sender for message in outcome.frame.messages}),
            "result": str(outcome.result),
            "reason": outcome.reason,
            "tries": outcome.tries,
            "messageIds": [message.id for message in outcome.frame.messages],
        },
    )
