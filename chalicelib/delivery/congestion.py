"""Congestion control: each endpoint has a queue, and a window of requests that may be in flight."""

from collections import deque
from dataclasses import KW_ONLY, dataclass, field
from math import inf
from typing import NamedTuple

from chalicelib.delivery.http_connection import Origin
from chalicelib.delivery.parcel import Parcel
from chalicelib.delivery.sigv4 import RequestSigner

START_WINDOW = 32
MAX_WINDOW = 256
FIRST_CONNECTIONS = 32  # opened whenever needed; further ones only for a queue that repays them
QUEUE_PER_CONNECTION = 2  # a handshake takes 0.5 ms of processor time, a request 0.02 ms


class EndpointTimeouts(NamedTuple):
    """The time for which an endpoint may owe a response, in seconds."""

    silent: float = 0.5
    """After this long, other endpoints no longer wait for room that this one occupies."""

    unreachable: float = 5.0
    """After this long, its recipients are given up for this delivery."""


DEFAULT_TIMEOUTS = EndpointTimeouts()


class CongestionWindow:
    """The number of requests that may be in flight: halved when throttled, then slowly widened.

    Additive increase, multiplicative decrease, with a slow start: RFC 5681 section 3.1, with
    requests in place of segments.
    """

    def __init__(self) -> None:
        self.size = float(START_WINDOW)
        self._threshold = float(MAX_WINDOW)
        self._halved_at = 0.0

    def succeeded(self) -> None:
        """Widen the window: by one per success at first, later by one per windowful of them."""
        step = 1.0 if self.size < self._threshold else 1.0 / self.size
        self.size = min(self.size + step, float(MAX_WINDOW))

    def throttled(self, sent_at: float, now: float) -> None:
        """Halve the window, once for all requests that were in flight together."""
        if sent_at >= self._halved_at:
            self.size = self._threshold = max(1.0, self.size / 2)
            self._halved_at = now


@dataclass(slots=True, eq=False)
class Task:
    """A parcel being delivered: the `position` of its next frame, and the tries of that frame."""

    parcel: Parcel
    queue: "EndpointQueue"
    _: KW_ONLY
    position: int = 0
    tries: int = 0
    reason: str = ""
    sent_at: float = 0.0


@dataclass(slots=True, eq=False)
class EndpointQueue:
    """The tasks for one endpoint.

    `pending` counts the unfinished ones: `ready` to be sent, in flight, or waiting for a retry.
    """

    origin: Origin
    signer: RequestSigner
    timeouts: EndpointTimeouts = DEFAULT_TIMEOUTS
    _: KW_ONLY
    window: CongestionWindow = field(default_factory=CongestionWindow)
    ready: deque[Task] = field(default_factory=deque)
    in_flight: int = 0
    pending: int = 0
    last_response_at: float = 0.0

    def add(self, parcel: Parcel, now: float) -> None:
        """Queue a parcel."""
        if not self.pending:
            self.last_response_at = now  # it owed no response until now
        self.pending += 1
        self.ready.append(Task(parcel, self))

    def may_send(self) -> bool:
        """Return whether the next task may be sent, on an idle connection or a new one."""
        ready, in_flight = len(self.ready), self.in_flight
        return (
            ready > 0
            and in_flight < self.window.size
            and (
                bool(self.origin.idle)
                or in_flight < FIRST_CONNECTIONS
                or ready > in_flight * QUEUE_PER_CONNECTION
            )
        )

    def is_silent(self, now: float) -> bool:
        """Return whether the endpoint has owed a response for a while."""
        return self.pending > 0 and now >= self.last_response_at + self.timeouts.silent

    def is_unreachable(self, now: float) -> bool:
        """Return whether the endpoint has owed a response for so long that it is given up."""
        return self.pending > 0 and now >= self.last_response_at + self.timeouts.unreachable

    def next_change(self, now: float) -> float:
        """Return when its silence matters next; or infinity.

        First other endpoints get its room, then its ready tasks are given up.
        """
        silent = self.last_response_at + self.timeouts.silent
        if self.pending and now < silent:
            return silent
        return self.last_response_at + self.timeouts.unreachable if self.ready else inf

    def reset(self) -> None:
        """Drop the tasks; keep the connections and the window for the next delivery."""
        self.ready.clear()
        self.in_flight = self.pending = 0
