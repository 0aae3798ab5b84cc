"""The fan-out's rate limit: frames a second of all workers together, shared equally by tenants.

It is GCRA with virtual scheduling (see `store.rate_limits`). One item has a clock for each tenant.
A worker reserves the time that its next frames take at its tenant's share of the rate, and waits
until that time comes. Each reservation returns all clocks, which tell how many tenants are active.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chalicelib.delivery.parcel import Parcel
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.schema import fanout_rate_key

SECOND = 1_000_000  # in microseconds, the unit of all clocks here
STEP_SECONDS = 0.1  # of frames in a reservation: fewer make it more even, but cost more writes
ACTIVE_FOR = SECOND  # how long a tenant counts as active after a reservation
FORGOTTEN_AFTER = 60 * SECOND
MAX_FORGOTTEN = 50  # clocks that one write removes, which bounds the expression's length
TRIES = 5


class FanoutRateLimiter:
    """Shares the rate of one region among tenants."""

    def __init__(
        self,
        store: Store,
        *,
        region: str,
        per_second: int,
        now: Callable[[], int] = lambda: time.time_ns() // 1000,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Take the rate and the clock.

        Args:
            per_second: The most frames a second; 0 is no limit.
            now: The clock, in epoch microseconds.
        """
        self.per_second = per_second
        self._store = store
        self._key = fanout_rate_key(region)
        self._now = now
        self._sleep = sleep
        self._active_tenants = 1
        self._stale_clocks: list[str] = []

    def page_items(self, most: int) -> int:
        """Return how many recipients to read at a time: at most a second's worth."""
        return min(most, self.per_second) if self.per_second else most

    def for_tenant(self, tenant: str | None, until: Deadline) -> "TenantThrottle":
        """Return the throttle of one tenant's parcels."""
        return TenantThrottle(self, tenant, until)

    def step(self) -> int:
        """Return how many parcels to send on one reservation."""
        return max(1, int(self.per_second * STEP_SECONDS / self._active_tenants))

    def wait(self, tenant: str | None, frames: int, until: Deadline) -> None:
        """Reserve time for frames, and sleep until it comes, but not longer than `until`."""
        due = self._reserve(tenant, frames)
        self._sleep(min(until.left(), max(0, due - self._now()) / SECOND))

    def _reserve(self, tenant: str | None, frames: int) -> int:
        """Advance a tenant's clock by the time that frames take; return when they are due."""
        clock = "due/" + hashlib.sha256(repr(tenant).encode()).hexdigest()[:32]
        for _ in range(TRIES):
            now = self._now()
            cost = frames * self._active_tenants * SECOND // self.per_second
            waits = Clause(
                set=("#due = #due + :cost",),
                when=("#due > :now",),
                names={"#due": clock},
                values={":cost": number(cost), ":now": number(now)},
            )
            begins = Clause(
                set=("#due = :due",),
                when=("attribute_not_exists(#due) OR #due <= :now",),
                names={"#due": clock},
                values={":due": number(now + cost), ":now": number(now)},
            )
            for clause in (waits, begins):
                action = update(
                    self._store.tables.messages, self._key, clause, self._forget_others(clock)
                )
                try:
                    clocks = self._store.update(action, ReturnValues="ALL_NEW")
                except Cancelled:
                    continue
                self._observe(clocks, now)
                return int(clocks[clock]["N"]) - cost
        return self._now()  # with that many competing reservations, the rate is kept anyway

    def _observe(self, clocks: Mapping[str, Any], now: int) -> None:
        """Note how many tenants are active, and which clocks are stale."""
        dues = {name: int(due["N"]) for name, due in clocks.items() if name.startswith("due/")}
        self._active_tenants = sum(due > now - ACTIVE_FOR for due in dues.values())
        self._stale_clocks = [name for name, due in dues.items() if due < now - FORGOTTEN_AFTER]

    def _forget_others(self, own: str) -> Clause:
        """Return a clause that removes stale clocks.

        A tenant that reserves at the same moment loses at most one reservation.
        """
        names = {
            f"#stale{index}": clock
            for index, clock in enumerate(self._stale_clocks[:MAX_FORGOTTEN])
            if clock != own
        }
        return Clause(remove=tuple(names), names=names)


class TenantThrottle:
    """Holds back one tenant's parcels until they may be sent."""

    def __init__(self, limiter: FanoutRateLimiter, tenant: str | None, until: Deadline) -> None:
        self._limiter = limiter
        self._tenant = tenant
        self._until = until

    def throttle(self, parcels: list[Parcel]) -> Iterator[list[Parcel]]:
        """Yield the parcels of a page, some at a time, when they may be sent.

        After `until` it stops waiting, since what was read has to be sent. Raises Unavailable.
        """
        if not self._limiter.per_second:
            yield parcels
            return
        while parcels:
            step = self._limiter.step()
            some, parcels = parcels[:step], parcels[step:]
            frames = sum(len(parcel.frames) for parcel in some)
            self._limiter.wait(self._tenant, frames, self._until)
            yield some
