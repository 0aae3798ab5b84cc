"""The census: how many tenants the fan-out is sending for at the moment.

Every second is a period. The first reservation for a tenant in a period counts the tenant, in one
of several counters, so that no item is written often. A counter is an item with a number and
the period that it belongs to; the counters of a few periods take turns. All environments read the
counters of this period and of the one before.
"""

import logging
import random
from collections.abc import Callable

from chalicelib.errors import Unavailable
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.schema import Item, fanout_counter_id, fanout_counter_key

SECOND = 1_000_000  # in microseconds, the unit of all clocks here
PERIOD = SECOND
COUNTERS = 8  # of a period: a thousand tenants are 125 writes a second to each
SLOTS = 4  # periods whose counters exist at the same time
STEP = SECOND // 10  # how often a tenant reserves: more often is more even, but costs more
STEP_PER_TENANT = SECOND // 200  # so that many tenants don't write too often together
LONGEST_STEP = SECOND // 2
SLACK = SECOND // 5  # by which a worker may reserve later than that
SOONEST_READ = SECOND // 10

logger = logging.getLogger("herald.fanout")


def step(tenants: int) -> int:
    """Return how often a tenant reserves when so many are active."""
    return max(STEP, min(LONGEST_STEP, tenants * STEP_PER_TENANT))


class Census:
    """Counts the active tenants of a region. Storage in trouble leaves the last known number."""

    def __init__(self, store: Store, *, region: str, now: Callable[[], int]) -> None:
        """Take the parts. `now` is the clock, in epoch microseconds."""
        self.tenants = 1
        self._store = store
        self._table = store.tables.messages
        self._region = region
        self._now = now
        self._read_at = 0
        self._is_first_read = True

    def count(self, period: int) -> None:
        """Count one more tenant in a period."""
        counter = random.randrange(COUNTERS)
        key = fanout_counter_key(self._region, period % SLOTS, counter)
        another = Clause(
            add=("tenants :one",),
            when=("#period = :period",),
            names={"#period": "period"},
            values={":one": number(1), ":period": number(period)},
        )
        first = Clause(
            set=("tenants = :one", "#period = :period"),
            when=("attribute_not_exists(#period) OR #period < :period",),
            names={"#period": "period"},
            values={":one": number(1), ":period": number(period)},
        )
        # With few tenants, most of them are the first ones of their counters.
        tries = (first, another) if self.tenants < COUNTERS else (another, first, another)
        try:
            for clause in tries:
                try:
                    self._store.update(update(self._table, key, clause))
                except Cancelled:
                    continue  # it is the first one after all, or not any more
                return
        except Unavailable as error:
            logger.warning("a tenant is not counted: %s", error.detail)

    def refresh(self) -> None:
        """Read the counters, unless that was a moment ago.

        While the number changes they are read more often, so that tenants which begin at the same
        time soon know of each other.
        """
        now = self._now()
        if now < self._read_at:
            return
        try:
            tenants = self._read(now)
        except Unavailable as error:
            logger.warning("the last known number of tenants is used: %s", error.detail)
            self._read_at = now + PERIOD
            return
        self._read_at = now + SOONEST_READ
        if tenants == self.tenants and not self._is_first_read:
            period, elapsed = divmod(now, PERIOD)
            complete = step(tenants) + SLACK + random.randrange(SOONEST_READ)
            self._read_at = (period + (elapsed >= complete)) * PERIOD + complete
        self.tenants = tenants
        self._is_first_read = False

    def _read(self, now: int) -> int:
        """Return the number of tenants that are active now."""
        period, elapsed = divmod(now, PERIOD)
        ids = [
            fanout_counter_id(self._region, counted % SLOTS, counter)
            for counted in (period - 1, period)
            for counter in range(COUNTERS)
        ]
        pages = self._store.batch_get(self._table, "id", ids)
        items = [item for page in pages for item in page]
        counted = _total(items, period)
        before = _total(items, period - 1)
        if elapsed < step(before) + SLACK:  # some are not counted in this period yet
            counted = max(counted, before)
        return max(1, counted)


def _total(items: list[Item], period: int) -> int:
    return sum(int(item["tenants"]["N"]) for item in items if int(item["period"]["N"]) == period)
