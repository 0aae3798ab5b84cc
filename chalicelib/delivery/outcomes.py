"""What a delivery or a probe shows of a connection: the log, its state, and who is told of it."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from chalicelib.delivery.frames import PROBE
from chalicelib.delivery.notices import Notifier, Removed
from chalicelib.delivery.parcel import Delivery, Outcome, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.store.connections import Connections
from chalicelib.store.items import Recipient

THREADS = 8
MAX_WAITING = 10_000
SETTLING_SECONDS = 1.0  # of a deadline, kept for what failures entail
HANDSHAKE_PAUSES = (0.25, 0.5)  # seconds: from `$connect`'s answer to the open socket, and more

logger = logging.getLogger("herald.delivery")


class OutcomeRecorder:
    """Keeps the connections true to what deliveries show, beside the sending."""

    def __init__(
        self,
        *,
        connections: Connections,
        delivery: Delivery,
        notifier: Notifier,
        now: Callable[[], int],
    ) -> None:
        """`now` is the clock, in epoch milliseconds."""
        self._connections = connections
        self._delivery = delivery
        self._notifier = notifier
        self._now = now
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="consequences")

    def begin(self) -> "Settlement":
        """For the outcomes of one delivery."""
        return Settlement(self._settle, self._is_early, self.ask, self._threads, self._notifier)

    def probe(self, recipients: Sequence[Recipient], deadline: float) -> list[Outcome]:
        """Ask each socket whether it is open, and note what that shows. `deadline` is in
        `time.monotonic` seconds."""
        settlement = self.begin()
        outcomes = self.ask(recipients, deadline - SETTLING_SECONDS)
        for outcome in outcomes:
            settlement.add(outcome)
        settlement.finish(deadline)
        return outcomes

    def ask(self, recipients: Sequence[Recipient], deadline: float) -> list[Outcome]:
        """Ask each socket whether it is open, and leave it at that."""
        parcels = [Parcel(recipient, (PROBE,)) for recipient in recipients]
        return list(self._delivery.deliver([parcels], deadline))

    def _is_early(self, outcome: Outcome) -> bool:
        return outcome.result is Result.GONE and outcome.recipient.may_be_in_handshake(self._now())

    def _settle(self, outcome: Outcome) -> None:
        recipient = outcome.recipient
        if outcome.result is not Result.DELIVERED:
            _log(outcome)
        try:
            if outcome.result is Result.DELIVERED:
                self._connections.revive(recipient.connection_id, self._now())
            elif outcome.result is not Result.STALE:
                self._connections.remove(recipient, self._now())
            elif outcome.tries:
                self._connections.mark_stale(recipient.connection_id)
        except Unavailable:
            # The report stands; the next delivery to this connection will find the same.
            logger.warning("could not record that %s is %s", recipient, outcome.result)
        except Exception:
            logger.exception("could not record that %s is %s", recipient, outcome.result)


class Settlement:
    """The consequences of one delivery's outcomes."""

    def __init__(
        self,
        settle: Callable[[Outcome], None],
        is_early: Callable[[Outcome], bool],
        ask: Callable[[Sequence[Recipient], float], list[Outcome]],
        threads: ThreadPoolExecutor,
        notifier: Notifier,
    ) -> None:
        self._settle = settle
        self._is_early = is_early
        self._ask = ask
        self._threads = threads
        self._notifier = notifier
        self._waiting: deque[Future[None]] = deque()
        self._last: Outcome | None = None
        self._early: list[Outcome] = []
        self._removed: list[Removed] = []

    def add(self, outcome: Outcome) -> None:
        """Settle an outcome, in another thread: a successful probe, or whatever is no delivery.

        Several in a row for one recipient, whose later frames share the fate of the first, are
        settled once.
        """
        if self._last is not None and outcome.recipient is self._last.recipient:
            return
        self._last = outcome
        if self._is_early(outcome):
            self._early.append(outcome)
        else:
            self._submit(outcome)
        if outcome.result is Result.REJECTED:
            self._removed.append(Removed(outcome.recipient, outcome.reason))

    def finish(self, deadline: float) -> None:
        """Wait until all is settled, and tell users what was removed. `deadline` is in
        `time.monotonic` seconds: what is not settled by then is left to the next delivery."""
        self._wait(deadline)
        if self._removed:
            removed, self._removed = self._removed, []
            for outcome in self._notifier.connections_removed(removed, deadline):
                if outcome.result is not Result.DELIVERED:
                    self.add(outcome)
        if self._early:
            self._ask_the_early(deadline)
        self._wait(deadline)

    def _ask_the_early(self, deadline: float) -> None:
        """`@connections` says 410 of a connection whose `$connect` has stored it and not yet
        ended. To remove that one would leave an open socket that nothing is ever sent to."""
        early = {outcome.recipient.connection_id: outcome for outcome in self._early}
        self._early = []
        for pause in HANDSHAKE_PAUSES:
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            answers = self._ask([one.recipient for one in early.values()], deadline)
            for answer in answers:
                if answer.result is Result.DELIVERED:
                    del early[answer.recipient.connection_id]
            if not early:
                return
        for answer in answers:
            outcome = early.get(answer.recipient.connection_id)
            if outcome is None:
                continue
            # Who can't be asked now is left to the sweep; but some emulators know no GET.
            if answer.result is Result.STALE and answer.reason != "http_501":
                outcome = outcome._replace(result=Result.STALE, reason=answer.reason)
            self._submit(outcome)

    def _submit(self, outcome: Outcome) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._threads.submit(self._settle, outcome))

    def _wait(self, deadline: float) -> None:
        left = wait(self._waiting, timeout=max(0.0, deadline - time.monotonic())).not_done
        given_up = sum(future.cancel() for future in left)
        if given_up:
            logger.warning("%d outcomes were not recorded in time", given_up)
        self._waiting.clear()


def _log(outcome: Outcome) -> None:
    recipient = outcome.recipient
    logger.info(
        "not delivered",
        extra={
            "connectionId": recipient.connection_id,
            "userId": recipient.user_id,
            "result": str(outcome.result),
            "reason": outcome.reason,
            "tries": outcome.tries,
            "messageIds": [message.id for message in outcome.frame.messages],
        },
    )
