"""The fan-out's rate limit: frames a second of all workers together, shared equally by tenants.

It is GCRA with virtual scheduling (see `store.rate_limits`). Each tenant has a clock, in an item of
its own. A worker reserves the time that its next frames take at its tenant's share of the rate, and
waits until that time comes. The share follows from the number of active tenants (`fanout.census`).

Inline deliveries of many frames reserve in the same way. Storage in trouble stops neither: they go
on at the last known share.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator

from chalicelib.delivery.parcel import Parcel
from chalicelib.errors import Unavailable
from chalicelib.fanout.census import LONGEST_STEP, PERIOD, SECOND, Census, step
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.schema import Item, fanout_clock_key, fanout_expires_at

LONGEST_SLEEP_SECONDS = LONGEST_STEP / SECOND  # after that a waiting tenant is counted again
LOCAL_FOR = SECOND  # how long storage in trouble is left alone
TRIES = 5

logger = logging.getLogger("herald.fanout")


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
        self._table = store.tables.messages
        self._region = region
        self._now = now
        self._sleep = sleep
        self._census = Census(store, region=region, now=now)
        self._known_due: tuple[str, int] = ("", 0)  # of the tenant that reserved last
        self._counted: tuple[str, int] = ("", 0)  # the tenant, and the period
        self._local_until = 0
        self._local_due = 0

    def share(self) -> float | None:
        """Return how many frames a second a tenant may send now; None if there is no limit."""
        if not self.per_second:
            return None
        self._census.refresh()
        return self.per_second / self._census.tenants

    def for_tenant(
        self, tenant: str | None, until: Deadline, *, free_frames: int = 0
    ) -> "TenantThrottle":
        """Return the throttle of one tenant's parcels; the first `free_frames` don't wait."""
        return TenantThrottle(self, tenant, until, free_frames)

    def step(self) -> int:
        """Return how many frames to send on one reservation."""
        if self._now() >= self._local_until:
            self._census.refresh()
        tenants = self._census.tenants
        return max(1, self.per_second * step(tenants) // SECOND // tenants)

    def wait(self, tenant: str | None, frames: int, until: Deadline) -> None:
        """Reserve time for frames, and sleep until it comes, but not longer than `until`."""
        due = self._reserve(tenant, frames)
        while (left := min(until.left(), (due - self._now()) / SECOND)) > LONGEST_SLEEP_SECONDS:
            self._sleep(LONGEST_SLEEP_SECONDS)
            self._stay_counted(tenant)
        self._sleep(max(0.0, left))

    def _reserve(self, tenant: str | None, frames: int) -> int:
        """Reserve time for frames; return when it begins."""
        now = self._now()
        if now >= self._local_until:
            try:
                return self._reserve_shared(tenant, frames)
            except Unavailable as error:
                logger.warning("the last known share of the rate is used: %s", error.detail)
                self._local_until = now + LOCAL_FOR
        due = max(now, self._local_due)
        self._local_due = due + self._cost(frames)
        return due

    def _stay_counted(self, tenant: str | None) -> None:
        """Count a tenant whose worker waits for so long that nobody reserves in this period."""
        now, hashed = self._now(), _hash(tenant)
        if now < self._local_until or self._counted == (hashed, now // PERIOD):
            return
        key = fanout_clock_key(self._region, hashed)
        try:
            self._store.update(update(self._table, key, _in_period(now)))
        except Cancelled:
            pass  # another worker of the tenant did
        except Unavailable:
            self._local_until = now + LOCAL_FOR
            return
        else:
            self._census.count(now // PERIOD)
        self._counted = (hashed, now // PERIOD)

    def _reserve_shared(self, tenant: str | None, frames: int) -> int:
        """Advance a tenant's clock by the time that frames take; return where it was.

        The first reservation for the tenant in a period counts the tenant.
        """
        hashed = _hash(tenant)
        key = fanout_clock_key(self._region, hashed)
        is_busy = self._known_due[0] == hashed and self._known_due[1] > self._now()
        counted = self._counted == (hashed, self._now() // PERIOD)
        for _ in range(TRIES):
            now = self._now()
            clauses = [self._advance(now, frames, is_busy=is_busy)]
            if not counted:
                clauses.append(_in_period(now))
            try:
                clock = self._store.update(
                    update(self._table, key, *clauses), ReturnValues="ALL_OLD"
                )
            except Cancelled as cancelled:
                clock = cancelled.items[0] or {}
                is_busy = _number(clock, "due") > now
                counted = counted or _number(clock, "period") >= now // PERIOD
                continue
            if not counted:
                self._census.count(now // PERIOD)
            self._counted = (hashed, now // PERIOD)
            begins = _number(clock, "due") if is_busy else now
            self._known_due = (hashed, begins + self._cost(frames))
            return begins
        return self._now()  # with that many competing reservations, the rate is kept anyway

    def _advance(self, now: int, frames: int, *, is_busy: bool) -> Clause:
        """Return the clause that advances a clock which is in the future, or else is idle."""
        cost = self._cost(frames)
        expires = number(fanout_expires_at(now))
        if is_busy:
            return Clause(
                set=("#due = #due + :cost", "expiresAt = :expires"),
                when=("#due > :now",),
                names={"#due": "due"},
                values={":cost": number(cost), ":now": number(now), ":expires": expires},
            )
        return Clause(
            set=("#due = :due", "expiresAt = :expires"),
            when=("attribute_not_exists(#due) OR #due <= :now",),
            names={"#due": "due"},
            values={":due": number(now + cost), ":now": number(now), ":expires": expires},
        )

    def _cost(self, frames: int) -> int:
        return frames * self._census.tenants * SECOND // self.per_second


class TenantThrottle:
    """Holds back one tenant's parcels until they may be sent."""

    def __init__(
        self, limiter: FanoutRateLimiter, tenant: str | None, until: Deadline, free_frames: int
    ) -> None:
        self._limiter = limiter
        self._tenant = tenant
        self._until = until
        self._free_frames = free_frames

    def throttle(self, parcels: list[Parcel]) -> Iterator[list[Parcel]]:
        """Yield the parcels of a page, some at a time, when they may be sent.

        After `until` it stops waiting, since what was read has to be sent.
        """
        if not self._limiter.per_second:
            yield parcels
            return
        free, frames, position = _take(parcels, 0, self._free_frames)
        self._free_frames -= frames
        if free:
            yield free
        while position < len(parcels):
            some, frames, position = _take(parcels, position, self._limiter.step(), at_least=1)
            self._limiter.wait(self._tenant, frames, self._until)
            yield some


def _take(
    parcels: list[Parcel], start: int, most: int, *, at_least: int = 0
) -> tuple[list[Parcel], int, int]:
    """Return parcels from `start` on with at most so many frames, their frames, and their end."""
    frames, end = 0, start
    for parcel in parcels[start:]:
        if frames + len(parcel.frames) > most and end - start >= at_least:
            break
        frames += len(parcel.frames)
        end += 1
    return parcels[start:end], frames, end


def _in_period(now: int) -> Clause:
    """Return the clause that notes that a tenant is counted in this period, once."""
    return Clause(
        set=("#period = :period",),
        when=("attribute_not_exists(#period) OR #period < :period",),
        names={"#period": "period"},
        values={":period": number(now // PERIOD)},
    )


def _number(item: Item, name: str) -> int:
    return int(item[name]["N"]) if name in item else 0


def _hash(tenant: str | None) -> str:
    return hashlib.sha256(repr(tenant).encode()).hexdigest()[:32]
