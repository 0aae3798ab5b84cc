"""Disconnects clients: removes their connections, sends a last frame, and closes the sockets."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor, wait

from chalicelib.clock import Clock
from chalicelib.delivery.frames import CLOSE, Frame, frame_of
from chalicelib.delivery.notices import Removed
from chalicelib.delivery.outcomes import HANDSHAKE_PAUSES
from chalicelib.delivery.parcel import Delivery, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.protocol.server_frames import token_expired
from chalicelib.protocol.strict_json import encode
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.connections import Connections
from chalicelib.store.items import Recipient

TOKEN_EXPIRED = frame_of(encode(token_expired()))
EVICTED = "connection_limit"

logger = logging.getLogger("herald.disconnect")


class Disconnector:
    """Ends connections from the server's side."""

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
        """Remove connections, send `last_frames` to each, and close the sockets.

        They are removed first, so that no message is sent to them even if a socket stays open.

        Args:
            deadline: A connection that is not removed by then is left as it is, with a line in the
                log.

        Raises:
            Unavailable: A connection could not be removed. The others are disconnected by then.
        """
        removals = {
            self._writers.submit(self._connections.remove, recipient, self._now()): recipient
            for recipient in recipients
        }
        done, late = wait(removals, timeout=deadline.left())
        for future in late:
            future.cancel()
        if late:
            logger.warning("%d connections were not removed in time", len(late))
        errors = [error for future in done if (error := future.exception()) is not None]
        removed = [removals[future] for future in done if future.exception() is None]
        self.close_sockets(removed, deadline, *last_frames)
        for error in errors:
            raise error

    def close_sockets(
        self, recipients: Sequence[Recipient], deadline: Deadline, *last_frames: Frame
    ) -> None:
        """Send `last_frames` to sockets and close them, whatever the tables say.

        A socket that cannot be reached counts as closed, unless its handshake may be unfinished:
        `@connections` answers 410 until `$connect` has ended.
        """
        parcels = [Parcel(recipient, (*last_frames, CLOSE)) for recipient in recipients]
        for pause in (*self._handshake_pauses, 0.0):
            if not parcels:
                return
            unconfirmed = {
                outcome.recipient.connection_id
                for outcome in self._delivery.deliver([parcels], deadline)
                if outcome.result is Result.GONE
                and outcome.recipient.may_be_in_handshake(self._now())
            }
            parcels = [one for one in parcels if one.recipient.connection_id in unconfirmed]
            if parcels:
                time.sleep(min(pause, deadline.left()))

    def disconnect_expired(self, recipients: Sequence[Recipient], deadline: Deadline) -> None:
        """Disconnect clients whose token has expired.

        Failures are only logged: the next delivery, or the sweep, finds these connections again.
        """
        try:
            self.disconnect(recipients, deadline, TOKEN_EXPIRED)
        except Unavailable as error:
            logger.warning(
                "could not disconnect every client whose token has expired: %s", error.detail
            )

    def evict(self, recipient: Recipient, deadline: Deadline) -> None:
        """Disconnect a client to make room for a newer connection of its user."""
        notice = frame_of(encode(Removed(recipient, EVICTED).to_frame()))
        self.disconnect([recipient], deadline, notice)
