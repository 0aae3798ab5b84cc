"""Ending connections that live: their items go, they are told why, and their socket is closed."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from chalicelib.delivery.frames import CLOSE, Frame, frame_of
from chalicelib.delivery.notices import Removed
from chalicelib.delivery.outcomes import HANDSHAKE_PAUSES
from chalicelib.delivery.parcel import Delivery, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.protocol.server_frames import token_expired
from chalicelib.protocol.strict_json import encode
from chalicelib.store.connections import Connections
from chalicelib.store.items import Recipient

THREADS = 8
TOKEN_EXPIRED = frame_of(encode(token_expired()))
EVICTED = "connection_limit"

logger = logging.getLogger("herald.terminate")


class Disconnector:
    """Terminates connections from our side."""

    def __init__(
        self, *, connections: Connections, delivery: Delivery, now: Callable[[], int]
    ) -> None:
        """`now` is the clock, in epoch milliseconds."""
        self._connections = connections
        self._delivery = delivery
        self._now = now
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="terminate")

    def disconnect(
        self, recipients: Sequence[Recipient], deadline: float, *farewell: Frame
    ) -> None:
        """Remove connections, send each `farewell`, and close it.

        Removed first, so that it is no connection of Herald's whatever its socket does. `deadline`
        is in `time.monotonic` seconds; who is not removed by then stays as they are, with a line
        in the log. Raises Unavailable when one could not be removed, after the others are done.
        """
        closing = {
            self._threads.submit(self._connections.remove, recipient, self._now()): recipient
            for recipient in recipients
        }
        done, late = wait(closing, timeout=max(0.0, deadline - time.monotonic()))
        for future in late:
            future.cancel()
        if late:
            logger.warning("%d connections were not removed in time", len(late))
        errors = [error for future in done if (error := future.exception()) is not None]
        removed = [closing[future] for future in done if future.exception() is None]
        self.close_sockets(removed, deadline, *farewell)
        for error in errors:
            raise error

    def close_sockets(
        self, recipients: Sequence[Recipient], deadline: float, *farewell: Frame
    ) -> None:
        """Send `farewell` to sockets, and close them, whatever their items say."""
        parcels = [Parcel(recipient, (*farewell, CLOSE)) for recipient in recipients]
        for pause in (*HANDSHAKE_PAUSES, 0.0):
            if not parcels:
                return
            # A socket that can't be reached is as closed as can be, but for one that is not open
            # yet: `@connections` says 410 until its `$connect` has ended.
            early = {
                outcome.recipient.connection_id
                for outcome in self._delivery.deliver([parcels], deadline)
                if outcome.result is Result.GONE
                and outcome.recipient.may_be_in_handshake(self._now())
            }
            parcels = [one for one in parcels if one.recipient.connection_id in early]
            if parcels:
                time.sleep(max(0.0, min(pause, deadline - time.monotonic())))

    def disconnect_expired(self, recipients: Sequence[Recipient], deadline: float) -> None:
        """Terminate connections whose token has expired. What fails is only logged: the next
        delivery, or the sweep, finds them again."""
        try:
            self.disconnect(recipients, deadline, TOKEN_EXPIRED)
        except Unavailable as error:
            logger.warning("could not end every expired connection: %s", error.detail)

    def evict(self, recipient: Recipient, deadline: float) -> None:
        """Terminate a connection that makes room for a newer one."""
        notice = frame_of(encode(Removed(recipient, EVICTED).to_frame()))
        self.disconnect([recipient], deadline, notice)
