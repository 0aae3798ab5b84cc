"""Writes to the history that leave room in the table for others.

A request's items are written no faster than its sender pays for, and in rounds, each of which waits
for the ones before. When DynamoDB throttles, the pace halves and the writer backs off; it rises
again with each round that is written in full (additive increase, multiplicative decrease). After
its time it gives up, and returns what it has not written.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from chalicelib.protocol.cost import COPIES_PER_UNIT
from chalicelib.store.dynamodb import MAX_BATCH_WRITE, Store
from chalicelib.store.schema import Item


class WriteLimits(NamedTuple):
    """The budget of one request's writes."""

    copies_per_second: float = 2000.0
    """The pace that its sender's rate pays for; see `protocol.cost`."""
    small_seconds: float = 0.3
    """How long the items of one batch are tried."""
    large_seconds: float = 8.0
    """How long more items than that are written."""
    head_start: int = 2 * COPIES_PER_UNIT
    """So many copies are written before the pace is kept, so that ordinary requests don't wait."""
    round_seconds: float = 0.05
    """A round has the copies of this time, at least a unit. Short ones interrupt others less."""
    batches: int = 8
    """The most batches of a round, which are written at the same time."""
    backoff_seconds: float = 0.025
    """The longest first pause when DynamoDB throttles; each further one is up to twice as long."""
    longest_backoff_seconds: float = 0.5
    """The longest pause."""
    recovery: float = 0.1
    """What a round that was written in full adds to the pace, as a share of the full pace."""
    slowest: float = 0.02
    """The slowest pace, as a share of the full pace."""


class PricedItem(NamedTuple):
    """An item, and its copies."""

    item: Item
    copies: int


class _Batch(NamedTuple):
    """Items that are written in one call, and their copies."""

    items: Sequence[PricedItem]
    copies: int


class PacedWriter:
    """Writes the items of one request after the other."""

    def __init__(
        self,
        store: Store,
        table: str,
        *,
        writers: Executor,
        limits: WriteLimits,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Take the parts. `writers` writes the batches of a round."""
        self._store = store
        self._table = table
        self._writers = writers
        self._limits = limits
        self._now = now
        self._sleep = sleep

    def write(self, items: Iterable[PricedItem]) -> list[Item]:
        """Write items in their order; return those for which there was no room in time.

        Raises Unavailable if DynamoDB can't be reached, or fails. Some items may be written then.
        """
        limits = self._limits
        batches = deque(self._batches(items))
        seconds = limits.large_seconds if len(batches) > 1 else limits.small_seconds
        until = self._now() + seconds
        pace = _Pace(limits, self._now())
        while batches:
            tried = list(self._next_round(batches, pace.per_second))
            unwritten = self._write_round(tried)
            # First, so that as many messages as possible are stored in full.
            batches.extendleft(reversed(list(self._batches(unwritten))))
            if not batches:
                break
            written = sum(batch.copies for batch in tried) - _copies(unwritten)
            resume_at = pace.after(written, self._now(), throttled=bool(unwritten))
            if resume_at > until:
                break
            self._sleep(max(0.0, resume_at - self._now()))
        return [priced.item for batch in batches for priced in batch.items]

    def _batches(self, items: Iterable[PricedItem]) -> Iterator[_Batch]:
        """Put items into batches that DynamoDB takes, of a round's copies at most."""
        most = max(COPIES_PER_UNIT, self._limits.copies_per_second * self._limits.round_seconds)
        batch: list[PricedItem] = []
        copies = 0
        for item in items:
            if batch and (len(batch) == MAX_BATCH_WRITE or copies + item.copies > most):
                yield _Batch(batch, copies)
                batch, copies = [], 0
            batch.append(item)
            copies += item.copies
        if batch:
            yield _Batch(batch, copies)

    def _next_round(self, batches: deque[_Batch], per_second: float) -> Iterator[_Batch]:
        """Take the batches of a round, at least one."""
        left = per_second * self._limits.round_seconds
        for _ in range(self._limits.batches):
            batch = batches.popleft()
            yield batch
            left -= batch.copies
            if not batches or left < batches[0].copies:
                return

    def _write_round(self, batches: Sequence[_Batch]) -> list[PricedItem]:
        """Write batches at the same time; return the items that are not written."""
        if len(batches) == 1:
            return self._write_batch(batches[0])
        writes = [self._writers.submit(self._write_batch, batch) for batch in batches]
        # Wait for all, even if one fails: nothing may be written after the request is answered.
        errors = [error for write in writes if (error := write.exception()) is not None]
        if errors:
            raise errors[0]  # each of them is in the log of the store
        return [item for write in writes for item in write.result()]

    def _write_batch(self, batch: _Batch) -> list[PricedItem]:
        left = self._store.batch_put(self._table, [priced.item for priced in batch.items])
        keys = {_key(item) for item in left}
        return [priced for priced in batch.items if _key(priced.item) in keys]


class _Pace:
    """The pace of one request's writes."""

    def __init__(self, limits: WriteLimits, now: float) -> None:
        self.per_second = limits.copies_per_second
        self._limits = limits
        self._due = now - limits.head_start / self.per_second
        self._throttled = 0

    def after(self, written: int, now: float, *, throttled: bool) -> float:
        """Return when to go on after a round, in which so many copies were written."""
        limits, full = self._limits, self._limits.copies_per_second
        self._due += written / self.per_second
        if not throttled:
            self._throttled = 0
            self.per_second = min(full, self.per_second + full * limits.recovery)
            return self._due
        self._due = max(self._due, now)  # what was not written in time is not caught up on
        self.per_second = max(full * limits.slowest, self.per_second / 2)
        longest = limits.backoff_seconds * 2**self._throttled
        self._throttled += 1
        backoff = random.uniform(0, min(longest, limits.longest_backoff_seconds))
        return max(self._due, now + backoff)


def _copies(items: Iterable[PricedItem]) -> int:
    return sum(item.copies for item in items)


def _key(item: Item) -> tuple[str, str]:
    return item["stream"]["S"], item["position"]["S"]
