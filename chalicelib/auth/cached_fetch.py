"""A cache for a remote value that keeps serving the last good one while its source is down."""

import logging
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from chalicelib.errors import Unavailable

REFRESH_SECONDS = 10 * 60  # the age at which a value is fetched again
MAX_STALE_SECONDS = 24 * 60 * 60  # the age up to which it serves while its source is down
FETCH_BURST = 3
FETCH_INTERVAL_SECONDS = 30  # between fetches in the long run, whatever clients send

T = TypeVar("T")

logger = logging.getLogger("herald.cached_fetch")


class FetchError(Exception):
    """The value could not be fetched; the text says why, for the log."""


class CachedFetch(Generic[T]):
    """A remote value: fetched when it is first needed, and again as it ages.

    Fetches are rate-limited, so that clients can't make Herald flood the source with requests.
    """

    def __init__(
        self, name: str, fetch: Callable[[], T], now: Callable[[], float] = time.time
    ) -> None:
        """Fetch nothing yet.

        Args:
            name: What the value is called in the log.
            fetch: Returns the current value; raises FetchError.
            now: The clock, in epoch seconds.
        """
        self._name = name
        self._fetch = fetch
        self._now = now
        self._value: T | None = None
        self._fetched_at = 0.0
        self._next_due = 0.0  # the generic cell rate algorithm, as in `store.rate_limits`

    def get(self) -> T:
        """Return the value, fetched or cached. Raises Unavailable if there is no usable one."""
        if self._value is None or self._age() > REFRESH_SECONDS:
            self.refresh()
        if self._value is None or self._age() > MAX_STALE_SECONDS:
            raise Unavailable(f"{self._name} can't be fetched", retry_after=FETCH_INTERVAL_SECONDS)
        return self._value

    def refresh(self) -> T | None:
        """Fetch and return the current value, since the cached one doesn't do.

        Returns None if the fetch fails, or if it would exceed the rate limit.
        """
        now = self._now()
        if self._next_due > now + (FETCH_BURST - 1) * FETCH_INTERVAL_SECONDS:
            return None
        self._next_due = max(self._next_due, now) + FETCH_INTERVAL_SECONDS
        try:
            value = self._fetch()
        except FetchError as error:
            cached = (
                "nothing is cached" if self._value is None else f"cached {self._age():.0f} s ago"
            )
            logger.error("could not fetch %s: %s; %s", self._name, error, cached)
            return None
        self._value, self._fetched_at = value, now
        return value

    def _age(self) -> float:
        return self._now() - self._fetched_at
