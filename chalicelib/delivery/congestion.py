"""One endpoint's part in a delivery: what waits for it, and how much it is given at a time."""

import time
from collections import deque
from dataclasses import dataclass, field

from chalicelib.delivery.http import Origin
from chalicelib.delivery.parcel import Parcel
from chalicelib.delivery.sigv4 import RequestSigner

START_WINDOW = 32
MAX_WINDOW = 256
SILENT_SECONDS = 0.5  # without an answer: others need not wait for it
UNREACHABLE_SECONDS = 5.0  # without an answer: nobody needs to


class CongestionWindow:
    """How many requests may be under way: halved by a throttled one, and slowly opened again.

    Additive increase, multiplicative decrease, with a slow start: RFC 5681 section 3.1, with
    requests for segments.
    """

    def __init__(self) -> None:
        self.size = float(START_WINDOW)
        self._threshold = float(MAX_WINDOW)
        self._cut_at = 0.0

    def succeeded(self) -> None:
        """Widen by one request for each success, later by one for each windowful."""
        step = 1.0 if self.size < self._threshold else 1.0 / self.size
        self.size = min(self.size + step, float(MAX_WINDOW))

    def throttled(self, sent_at: float, now: float) -> None:
        """Halve, once for all the requests that were under way together."""
        if sent_at >= self._cut_at:
            self.size = self._threshold = max(1.0, self.size / 2)
            self._cut_at = now


@dataclass(slots=True, eq=False)
class Task:
    """A parcel on its way: which of its frames is next, and how that went so far."""

    parcel: Parcel
    lane: "EndpointQueue"
    position: int = 0
    tries: int = 0
    reason: str = ""
    sent_at: float = 0.0


@dataclass(slots=True, eq=False)
class EndpointQueue:
    """The tasks for one endpoint. Those `pending` wait in `queue`, are under way or will be tried
    again; the lane's pace is its own."""

    origin: Origin
    signer: RequestSigner
    window: CongestionWindow = field(default_factory=CongestionWindow)
    queue: deque[Task] = field(default_factory=deque)
    in_flight: int = 0
    pending: int = 0
    heard_at: float = 0.0

    def add(self, parcel: Parcel) -> None:
        if not self.pending:
            self.heard_at = time.monotonic()  # it owes no answer from before
        self.pending += 1
        self.queue.append(Task(parcel, self))

    def is_silent(self, now: float, seconds: float) -> bool:
        """Whether the endpoint owes answers and has not given one for so long."""
        return self.pending > 0 and now - self.heard_at > seconds

    def reset(self) -> None:
        """Forget the tasks; the connections and the window stay for the next delivery."""
        self.queue.clear()
        self.in_flight = self.pending = 0
