"""The limits, and the token buckets that enforce them."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Limits(NamedTuple):
    """What AWS lets an account do in a second.

    The defaults are those of a new table on demand, which takes 4,000 writes and 12,000 reads; of
    one partition; and of an account's quota for `@connections`.
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/on-demand-capacity-mode.html
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/bp-partition-key-design.html
    https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
    """

    table_writes: float = 4_000
    table_reads: float = 12_000
    partition_writes: float = 1_000
    partition_reads: float = 3_000
    burst_seconds: float = 1.0
    """A table or partition that was idle may take this many seconds' worth at once."""
    connections_rate: float = 10_000
    connections_burst: float = 5_000

    def scaled(self, factor: float) -> "Limits":
        """Return these limits, divided by `factor`."""
        rates = {name: value / factor for name, value in self._asdict().items()}
        return Limits(**{**rates, "burst_seconds": self.burst_seconds})


AWS_LIMITS = Limits()


class Bucket:
    """A token bucket, which begins full.

    What a read or an update costs is known only when it is done, so it may be begun while there is
    any token left, and overdraws the bucket if it costs more.
    """

    def __init__(
        self, rate: float, burst: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the tokens that are added in a second, and the most that the bucket holds."""
        self._rate = rate
        self._burst = burst
        self._now = now
        self._level = burst
        self._updated = now()

    @property
    def empty(self) -> bool:
        """True if no whole token is left."""
        return self._refilled() < 1

    def spend(self, tokens: float) -> None:
        """Take tokens, even more than there are."""
        self._level = self._refilled() - tokens

    def _refilled(self) -> float:
        now = self._now()
        self._level = min(self._burst, self._level + (now - self._updated) * self._rate)
        self._updated = now
        return self._level
