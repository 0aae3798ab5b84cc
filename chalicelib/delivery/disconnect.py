"""Disconnects clients: sends a last frame, closes the sockets, and removes the connections."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, wait

from chalicelib.clock import Clock
from chalicelib.delivery.frames import CLOSE, Frame, frame_of
from chalicelib.delivery.notices import Removed
from chalicelib.delivery.parcel import RECORDING_SECONDS, Delivery, Outcome, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.protocol.server_frames import token_expired
from chalicelib.protocol.strict_json import encode
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.connections import Connections
from chalicelib.store.items import Recipient

TOKEN_EXPIRED = frame_of(encode(token_expired()))
EVICTED = "connection_limit"
HANDSHAKE_PAUSES = (0.25, 0.5)  # seconds between tries, until a handshake's socket is open

logger = logging.getLogger("herald.disconnect")


class Disconnector:
    """Ends connections from the server's side.

    A socket is closed before its connection is removed, and a connection stays if its socket could
    not be closed. So wherever this fails or is cut off, no socket is open that the tables don't
    know. The opposite, a connection without a socket, is found by the next delivery or the sweep.
    """

    def __init__(
        self,
        *,
        connections: Connections,
        delivery: Delivery,
        writers: Executor,
        now: Clock,
        handshake_pauses: Sequence[float] = HANDSHAKE_PAUSES,
    ) -> None:
        """Take the parts. `writers` runs the writes."""
        self._connections = connections
        self._delivery = delivery
        self._writers = writers
        self._now = now
        self._handshake_pauses = handshake_pauses

    def disconnect(
        self, recipients: Sequence[Recipient], deadline: Deadline, *last_frames: Frame
    ) -> None:
        """Send `last_frames` to each connection, close its socket, and remove it.

        Raises:
            Unavailable: A socket could not be closed, or a connection could not be removed. The
                others are disconnected by then, and each error is in the log.
        """
        closed = self.close_sockets(recipients, deadline.earlier(RECORDING_SECONDS), *last_frames)
        errors = self._remove(closed, deadline)
        if len(closed) < len(recipients):
            errors.append(Unavailable("a connection could not be closed", retry_after=1.0))
        if errors:
            raise errors[0]

    def close_sockets(
        self, recipients: Sequence[Recipient], deadline: Deadline, *last_frames: Frame
    ) -> list[Recipient]:
        """Send `last_frames` to sockets and close them; log those that could not be closed.

        Returns the recipients whose sockets are closed. One that `@connections` refuses to close
        for good counts as closed, since nobody can ever close it. One that is gone is asked for
        again while its handshake may be unfinished: `@connections` answers 410 until `$connect`
        has ended.
        """
        closed: list[Recipient] = []
        unconfirmed = list(recipients)
        for pause in (0.0, *self._handshake_pauses):
            if not unconfirmed:
                break
            time.sleep(min(pause, deadline.left()))
            outcomes = list(self._send_close(unconfirmed, deadline, last_frames))
            unconfirmed = []
            for outcome in outcomes:
                if self._is_unconfirmed(outcome):
                    unconfirmed.append(outcome.recipient)
                elif _is_closed(outcome):
                    closed.append(outcome.recipient)
        closed += unconfirmed  # they have ended: a handshake is over soon after it was stored
        left = {one.connection_id for one in recipients} - {one.connection_id for one in closed}
        if left:
            logger.warning("could not close the sockets of %s", ", ".join(sorted(left)))
        return closed

    def _is_unconfirmed(self, outcome: Outcome) -> bool:
        """Return whether a gone connection may be about to open."""
        gone = outcome.result is Result.GONE
        return gone and outcome.recipient.may_be_in_handshake(self._now())

    def _send_close(
        self, recipients: Sequence[Recipient], deadline: Deadline, last_frames: Sequence[Frame]
    ) -> Iterator[Outcome]:
        """Yield the outcome of CLOSE for each recipient.

        Where a last frame fails, CLOSE is sent without it.
        """
        parcels = [Parcel(recipient, (*last_frames, CLOSE)) for recipient in recipients]
        unsent: list[Parcel] = []
        for outcome in self._delivery.deliver([parcels], deadline):
            if outcome.frame is not CLOSE:
                continue
            if outcome.tries or outcome.result is Result.GONE:
                yield outcome
            else:
                unsent.append(Parcel(outcome.recipient, (CLOSE,)))
        if unsent:
            yield from self._delivery.deliver([unsent], deadline)

    def _remove(self, recipients: Sequence[Recipient], deadline: Deadline) -> list[BaseException]:
        """Remove connections; return the errors, which are in the log."""
        removals = {
            self._writers.submit(self._connections.remove, recipient, self._now()): recipient
            for recipient in recipients
        }
        done, late = wait(removals, timeout=deadline.left())
        errors: list[BaseException] = []
        for future in done:
            if (error := future.exception()) is not None:
                logger.error("could not remove %s: %s", removals[future], error)
                errors.append(error)
        for future in late:
            future.cancel()
        if late:
            logger.warning("%d connections were not removed in time", len(late))
            errors.append(Unavailable("a connection was not removed in time", retry_after=1.0))
        return errors

    def disconnect_expired(self, recipients: Sequence[Recipient], deadline: Deadline) -> None:
        """Disconnect clients whose token has expired.

        Failures are only logged: the next delivery, or the sweep, finds these connections again.
        Until then nothing is delivered to them.
        """
        try:
            self.disconnect(recipients, deadline, TOKEN_EXPIRED)
        except Unavailable as error:
            logger.warning(
                "could not disconnect every client whose token has expired: %s", error.detail
            )

    def evict(self, recipient: Recipient, deadline: Deadline) -> None:
        """Disconnect a client to make room for a newer connection of its user.

        Raises Unavailable if it could not be disconnected.
        """
        notice = frame_of(encode(Removed(recipient, EVICTED).to_frame()))
        self.disconnect([recipient], deadline, notice)


def _is_closed(outcome: Outcome) -> bool:
    """Return whether a socket is closed, or can never be: some emulators have no DELETE."""
    return outcome.result is not Result.STALE or outcome.reason == "http_501"
