"""What is fetched from elsewhere, kept for as long as it is good."""

import logging
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from chalicelib.errors import Unavailable

FRESH_SECONDS = 10 * 60  # then it is fetched again
GOOD_SECONDS = 24 * 60 * 60  # so long it serves while it can't be fetched again
FETCHES_AT_ONCE = 3
FETCH_EVERY_SECONDS = 30  # in the long run, whatever clients send

T = TypeVar("T")

logger = logging.getLogger("herald.kept")


class FetchError(Exception):
    """It could not be fetched; the text says why, for the log."""


class CachedFetch(Generic[T]):
    """A value from elsewhere: fetched when it is first asked for, and again as it ages.

    While it can't be fetched, the last that was serves for a day. How often it is asked for is
    limited, so that no client can make us hammer where it comes from.
    """

    def __init__(
        self, name: str, fetch: Callable[[], T], now: Callable[[], float] = time.time
    ) -> None:
        """`name` is for the log; `fetch` raises FetchError; `now` is in epoch seconds."""
        self._name = name
        self._fetch = fetch
        self._now = now
        self._value: T | None = None
        self._fetched_at = 0.0
        self._due = 0.0  # of the fetches: the generic cell rate algorithm, as in `limits`

    def get(self) -> T:
        """The value. Raises Unavailable when there is none that is good."""
        if self._value is None or self._age() > FRESH_SECONDS:
            self.renew()
        if self._value is None or self._age() > GOOD_SECONDS:
            raise Unavailable(f"{self._name} can't be fetched", retry_after=FETCH_EVERY_SECONDS)
        return self._value

    def renew(self) -> T | None:
        """The value, fetched once more because what is kept doesn't do. None if it can't be
        fetched, or not again so soon."""
        now = self._now()
        if self._due > now + (FETCHES_AT_ONCE - 1) * FETCH_EVERY_SECONDS:
            return None
        self._due = max(self._due, now) + FETCH_EVERY_SECONDS
        try:
            value = self._fetch()
        except FetchError as error:
            kept = "none is kept" if self._value is None else f"kept for {self._age():.0f} s"
            logger.error("could not fetch %s: %s; %s", self._name, error, kept)
            return None
        self._value, self._fetched_at = value, now
        return value

    def _age(self) -> float:
        return self._now() - self._fetched_at
