"""The pace of the workers: so many frames a second together, in equal shares for the tenants at it.

The virtual scheduling of GCRA (see `limits`), with a clock for each tenant, all in one item: a
worker reserves the time that its next frames take at its tenant's share, and waits until that time
has come. How many tenants share is in the answer to each reservation.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chalicelib.delivery.parcel import Parcel
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.schema import fanout_rate_key

SECOND = 1_000_000  # microseconds, as all times here
STEP_SECONDS = 0.1  # worth of frames in one reservation: a write, and how even the pace is
ACTIVE = SECOND  # a tenant that reserved nothing for so long has no share
FORGOTTEN = 60 * SECOND
MOST_FORGOTTEN = 50  # at a time, for the sake of the expression's length
TRIES = 5


class FanoutRateLimiter:
    """Hands out the budget of one region."""

    def __init__(
        self,
        store: Store,
        *,
        region: str,
        per_second: int,
        now: Callable[[], int] = lambda: time.time_ns() // 1000,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`per_second` of 0 is no limit. `now` is the clock, in epoch microseconds."""
        self._store = store
        self._key = fanout_rate_key(region)
        self._per_second = per_second
        self._now = now
        self._sleep = sleep
        self._sharing = 1
        self._stale: list[str] = []

    def page_items(self, most: int) -> int:
        """How many recipients to read at a time: no more than a second's worth."""
        return min(most, self._per_second) if self._per_second else most

    def throttle(
        self, parcels: list[Parcel], tenant: str | None, end: float
    ) -> Iterator[list[Parcel]]:
        """The parcels of a page, some at a time, when they may be sent. What was read has to be
        sent: after `end` (in `time.monotonic` seconds) it does not wait. Raises Unavailable."""
        if not self._per_second:
            yield parcels
            return
        while parcels:
            step = max(1, int(self._per_second * STEP_SECONDS / self._sharing))
            some, parcels = parcels[:step], parcels[step:]
            due = self._reserve(tenant, sum(len(parcel.frames) for parcel in some))
            left = max(0.0, end - time.monotonic())
            self._sleep(min(left, max(0, due - self._now()) / SECOND))
            yield some

    def _reserve(self, tenant: str | None, frames: int) -> int:
        """When a tenant's next frames are due."""
        name = "due/" + hashlib.sha256(repr(tenant).encode()).hexdigest()[:32]
        for _ in range(TRIES):
            now = self._now()
            cost = frames * self._sharing * SECOND // self._per_second
            waits = Clause(
                set=("#due = #due + :cost",),
                when=("#due > :now",),
                names={"#due": name},
                values={":cost": number(cost), ":now": number(now)},
            )
            begins = Clause(
                set=("#due = :due",),
                when=("attribute_not_exists(#due) OR #due <= :now",),
                names={"#due": name},
                values={":due": number(now + cost), ":now": number(now)},
            )
            for part in (waits, begins):
                try:
                    action = update(
                        self._store.tables.messages, self._key, part, self._forgetting(name)
                    )
                    dues = self._store.update(action, ReturnValues="ALL_NEW")
                except Cancelled:
                    continue
                self._look_around(dues, now)
                return int(dues[name]["N"]) - cost
        return self._now()  # so many others reserve in these moments that the pace is kept anyway

    def _look_around(self, dues: Mapping[str, Any], now: int) -> None:
        """Who shares the budget, and whose last reservation is long past."""
        times = {name: int(due["N"]) for name, due in dues.items() if name.startswith("due/")}
        self._sharing = sum(due > now - ACTIVE for due in times.values())
        self._stale = [name for name, due in times.items() if due < now - FORGOTTEN]

    def _forgetting(self, own: str) -> Clause:
        """Removes clocks that stand still. One that goes again just now loses a moment's debt."""
        names = {
            f"#old{index}": name
            for index, name in enumerate(self._stale[:MOST_FORGOTTEN])
            if name != own
        }
        return Clause(remove=tuple(names), names=names)
