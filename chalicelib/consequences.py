"""What a delivery that failed changes: the log, the connection's state, and who is told of it."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from chalicelib.connections import Connections
from chalicelib.delivery import Outcome
from chalicelib.errors import Unavailable
from chalicelib.messages import Result
from chalicelib.notify import Notifier, Removed

THREADS = 8
MAX_WAITING = 10_000

logger = logging.getLogger("herald.delivery")


class Consequences:
    """Keeps the connections true to what deliveries show, beside the sending."""

    def __init__(
        self, connections: Connections, notifier: Notifier, now: Callable[[], int]
    ) -> None:
        """`now` is the clock, in epoch milliseconds."""
        self._connections = connections
        self._notifier = notifier
        self._now = now
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="consequences")

    def begin(self) -> "Settlement":
        """For the outcomes of one delivery."""
        return Settlement(self._settle, self._threads, self._notifier)

    def _settle(self, outcome: Outcome) -> None:
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
        try:
            if outcome.result is not Result.STALE:
                self._connections.close(
                    recipient.connection_id, recipient.tenant, recipient.user_id, self._now()
                )
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
        self, settle: Callable[[Outcome], None], threads: ThreadPoolExecutor, notifier: Notifier
    ) -> None:
        self._settle = settle
        self._threads = threads
        self._notifier = notifier
        self._waiting: deque[Future[None]] = deque()
        self._last: Outcome | None = None
        self._removed: list[Removed] = []

    def add(self, outcome: Outcome) -> None:
        """Settle an outcome that is no delivery, in another thread. Several in a row for one
        recipient, whose later frames share the fate of the first, are settled once."""
        if self._last is not None and outcome.recipient is self._last.recipient:
            return
        self._last = outcome
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._threads.submit(self._settle, outcome))
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
            self._wait(deadline)

    def _wait(self, deadline: float) -> None:
        left = wait(self._waiting, timeout=max(0.0, deadline - time.monotonic())).not_done
        given_up = sum(future.cancel() for future in left)
        if given_up:
            logger.warning("%d failed deliveries were not recorded in time", given_up)
        self._waiting.clear()
