"""A cache for a remote value that keeps serving the last good one while its source is down.

Fetches run in a thread of their own. So a source that answers slowly, or never, costs a caller a
short wait while there is a good value, and a few seconds when there is none. An abandoned fetch
ends by itself. Lambda freezes the thread between invocations: then the next call takes the value
if it is there by then, or begins anew.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from chalicelib.errors import Unavailable

REFRESH_SECONDS = 10 * 60  # the age at which a value is fetched again
MAX_STALE_SECONDS = 24 * 60 * 60  # the age up to which it serves while its source is down
FETCH_BURST = 3
FETCH_INTERVAL_SECONDS = 30  # between fetches in the long run, whatever clients send

T = TypeVar("T")

logger = logging.getLogger("herald.cached_fetch")


class FetchError(Exception):
    """The value could not be fetched; the text says why, for the log."""


class FetchWaits(NamedTuple):
    """How many seconds a caller waits for a fetch, from the first step to the last byte."""

    without_value: float = 5.0
    """When there is no good value: far less than Lambda's time-out of an authorizer."""

    with_value: float = 0.5
    """When the cached value is good, but aged: it serves afterwards."""


DEFAULT_WAITS = FetchWaits()


class CachedFetch(Generic[T]):
    """A remote value: fetched when it is first needed, and again as it ages.

    Fetches are rate-limited, so that clients can't make Herald flood the source with requests.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[], T],
        now: Callable[[], float] = time.time,
        waits: FetchWaits = DEFAULT_WAITS,
    ) -> None:
        """Fetch nothing yet.

        Args:
            name: What the value is called in the log.
            fetch: Returns the current value; raises FetchError. Runs in a thread of its own, one
                at a time unless it takes too long.
            now: The clock, in epoch seconds.
            waits: How long a caller waits.
        """
        self._name = name
        self._fetch = fetch
        self._now = now
        self._waits = waits
        self._value: T | None = None
        self._fetched_at = 0.0
        self._next_due = 0.0  # the generic cell rate algorithm, as in `store.rate_limits`
        self._running: _Fetch[T] | None = None

    def get(self) -> T:
        """Return the value, fetched or cached. Raises Unavailable if there is no usable one."""
        self._take()
        if self._value is None or self._age() > MAX_STALE_SECONDS:
            self.refresh()
        elif self._age() > REFRESH_SECONDS and self._running is None:
            self._begin()
            self._take(self._waits.with_value)
        if self._value is None or self._age() > MAX_STALE_SECONDS:
            raise Unavailable(f"{self._name} can't be fetched", retry_after=FETCH_INTERVAL_SECONDS)
        return self._value

    def refresh(self) -> T | None:
        """Fetch and return the current value, since the cached one doesn't do.

        Returns None if the fetch fails, takes too long, or would exceed the rate limit.
        """
        if self._running is None:
            self._begin()
        value = self._take(self._waits.without_value)
        if self._running is not None:
            self._abandon()
        return value

    def _begin(self) -> None:
        """Begin a fetch, unless that would exceed the rate limit."""
        now = self._now()
        if self._next_due > now + (FETCH_BURST - 1) * FETCH_INTERVAL_SECONDS:
            return
        self._next_due = max(self._next_due, now) + FETCH_INTERVAL_SECONDS
        self._running = _Fetch(self._fetch, now)
        self._running.start()

    def _take(self, seconds: float = 0.0) -> T | None:
        """Wait for the fetch that is running, if any. Store and return its value."""
        running = self._running
        if running is None:
            return None
        late = self._now() - running.begun_at > self._waits.without_value
        # Lambda may have frozen a late one, which then ends a moment after this.
        running.join(max(seconds, self._waits.with_value) if late else seconds)
        if running.is_alive():
            if late:
                self._abandon()
            return None
        self._running = None
        if running.error is not None:
            self._log_failure(running.error)
            return None
        self._value, self._fetched_at = running.value, running.begun_at
        return running.value

    def _abandon(self) -> None:
        """Wait no longer for the fetch that is running."""
        self._running = None
        self._log_failure(FetchError(f"no answer within {self._waits.without_value} s"))

    def _log_failure(self, error: BaseException) -> None:
        cached = "nothing is cached" if self._value is None else f"cached {self._age():.0f} s ago"
        unforeseen = None if isinstance(error, FetchError) else error
        logger.error("could not fetch %s: %s; %s", self._name, error, cached, exc_info=unforeseen)

    def _age(self) -> float:
        return self._now() - self._fetched_at


class _Fetch(threading.Thread, Generic[T]):
    """A fetch in a thread of its own. At its end, `value` or `error` is set."""

    def __init__(self, fetch: Callable[[], T], begun_at: float) -> None:
        super().__init__(daemon=True)
        self.begun_at = begun_at
        self.value: T | None = None
        self.error: Exception | None = None
        self._fetch = fetch

    def run(self) -> None:
        try:
            self.value = self._fetch()
        except Exception as error:
            self.error = error
