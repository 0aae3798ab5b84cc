"""Limits on what a user may do: rates by GCRA, and a quota for each day.

The generic cell rate algorithm (ITU-T I.371, section 6.2.2.1.1) stores one number: when the user's
next request would be due if they kept to their rate (the theoretical arrival time). A request that
comes earlier than that by more than the burst allows is refused. That number and the day's count
are attributes of the user's item, so that a charge is part of another write to the same item.

Requests have weights: one of n units advances that time by n intervals. It passes if one unit is
left, so that no request is too large to be sent, and the next ones wait until it is paid. What
turns out to be owed after a request has passed is charged as a debt, which nothing refuses.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from chalicelib.clock import EpochMs
from chalicelib.errors import Contended, QuotaExceeded, RateLimited, Unavailable
from chalicelib.protocol.cost import Debt
from chalicelib.store.expressions import Clause, number
from chalicelib.store.schema import QUOTA_ATTRIBUTE

DAY_MS = 24 * 60 * 60 * 1000
QUOTA_BASE = 10**9  # the quota's attribute is one number: day * QUOTA_BASE + the day's count
TRIES = 6
CACHED_USERS = 10_000

logger = logging.getLogger("herald.limits")


class Rate(NamedTuple):
    """A rate: `burst` units at once, and one more every `interval` microseconds."""

    interval: int
    burst: int

    @classmethod
    def per_second(cls, rate: float, burst: int) -> "Rate":
        """Return a rate of `rate` units a second."""
        return cls(max(1, round(1_000_000 / rate)), burst)

    @classmethod
    def per_minute(cls, rate: float) -> "Rate":
        """Return a rate of `rate` units a minute, which may come at once."""
        return cls(max(1, round(60_000_000 / rate)), max(1, int(rate)))


class Usage(NamedTuple):
    """A user's past requests: `due` in epoch microseconds, `quota` as its attribute holds it."""

    due: int = 0
    quota: int = 0


class Charge(NamedTuple):
    """The clauses that charge a request to a user's item, and the usage after it."""

    clauses: list[Clause]
    usage: Usage


class RateLimit:
    """The limit on one kind of request: its rate, and possibly a daily quota. No I/O."""

    def __init__(self, attribute: str, rate: Rate, daily_quota: int = 0) -> None:
        """Define a limit.

        Args:
            attribute: The attribute of users' items that holds `Usage.due`.
            rate: The most that it allows.
            daily_quota: Messages per UTC day; 0 for no quota.
        """
        self._attribute = attribute
        self._rate = rate
        self._daily_quota = daily_quota

    def usage(self, user: Mapping[str, Any]) -> Usage:
        """Return the usage that a user's item records."""
        due, quota = user.get(self._attribute), user.get(QUOTA_ATTRIBUTE)
        return Usage(int(due["N"]) if due else 0, int(quota["N"]) if quota else 0)

    def charge(self, usage: Usage, now: EpochMs, *, units: int = 1, quota: int = 0) -> Charge:
        """Charge one request, given the user's usage.

        As far as an expression can say it, the clauses' conditions also hold if others have charged
        the user since.

        Args:
            usage: The user's usage before the request.
            now: The time of the request.
            units: The request's weight. It passes if one unit is left.
            quota: What it counts towards the daily quota.

        Raises:
            RateLimited, QuotaExceeded: The request is refused.
        """
        latest = self._latest(usage.due, now)
        rate, due = self._advance(usage.due, now, units, latest)
        if not (self._daily_quota and quota):
            return Charge([rate], Usage(due, usage.quota))
        count, used = self._count(usage.quota, now, quota, self._most(usage.quota, now, quota))
        return Charge([rate, count], Usage(due, used))

    def owe(self, usage: Usage, now: EpochMs, *, units: int, quota: int = 0) -> Charge:
        """Charge a debt, which is never refused, given the user's usage. See `charge`."""
        rate, due = self._advance(usage.due, now, units)
        if not (self._daily_quota and quota):
            return Charge([rate], Usage(due, usage.quota))
        count, used = self._count(usage.quota, now, quota)
        return Charge([rate, count], Usage(due, used))

    def owe_at_least(self, usage: Usage, now: EpochMs, units: int) -> Charge | None:
        """Let a user owe `units` at `now`, unless they owe as much already. See `charge`."""
        due = now * 1000 + units * self._rate.interval
        if usage.due >= due:
            return None
        clause = Clause(
            set=("#due = :due",),
            when=("attribute_not_exists(#due) OR #due < :due",),
            names={"#due": self._attribute},
            values={":due": number(due)},
        )
        return Charge([clause], Usage(due, usage.quota))

    def _latest(self, due: int, now: EpochMs) -> int:
        """Return the latest `due` at which a request may pass. Raises RateLimited."""
        latest = now * 1000 + (self._rate.burst - 1) * self._rate.interval
        if due > latest:
            raise RateLimited("too many requests", retry_after=(due - latest) / 1_000_000)
        return latest

    def _advance(
        self, due: int, now: EpochMs, units: int, latest: int | None = None
    ) -> tuple[Clause, int]:
        """Return the clause that advances `due` by units unless it is after `latest`, and `due`
        after it."""
        at, cost = now * 1000, units * self._rate.interval
        names = {"#due": self._attribute}
        if due <= at:
            idle = Clause(
                set=("#due = :due",),
                when=("attribute_not_exists(#due) OR #due <= :at",),
                names=names,
                values={":due": number(at + cost), ":at": number(at)},
            )
            return idle, at + cost
        busy = Clause(
            set=("#due = #due + :cost",),
            when=("#due > :at" if latest is None else "#due > :at AND #due <= :latest",),
            names=names,
            values={
                ":cost": number(cost),
                ":at": number(at),
                **({} if latest is None else {":latest": number(latest)}),
            },
        )
        return busy, due + cost

    def _most(self, quota: int, now: EpochMs, more: int) -> int:
        """Return the most that the day's count may be before `more`. Raises QuotaExceeded."""
        day, ms_of_day = divmod(now, DAY_MS)
        used = max(0, quota - day * QUOTA_BASE)
        if used + more > self._daily_quota:
            raise QuotaExceeded(
                f"the daily quota is {self._daily_quota} messages, {used} of which are used",
                retry_after=(DAY_MS - ms_of_day) / 1000,
            )
        return self._daily_quota - more

    @staticmethod
    def _count(
        quota: int, now: EpochMs, more: int, most: int = QUOTA_BASE - 1
    ) -> tuple[Clause, int]:
        """Return the clause that counts `more` unless the count is over `most`, and the count
        after it."""
        today = now // DAY_MS * QUOTA_BASE
        names = {"#quota": QUOTA_ATTRIBUTE}
        if quota < today:
            first_today = Clause(
                set=("#quota = :quota",),
                when=("attribute_not_exists(#quota) OR #quota < :today",),
                names=names,
                values={":quota": number(today + more), ":today": number(today)},
            )
            return first_today, today + more
        another_today = Clause(
            set=("#quota = #quota + :more",),
            when=("#quota BETWEEN :today AND :most",),
            names=names,
            values={
                ":more": number(more),
                ":today": number(today),
                ":most": number(today + most),
            },
        )
        return another_today, quota + more


WriteCharge = Callable[[Sequence[Clause]], Mapping[str, Any] | None]
"""Writes a charge's clauses to a user's item, together with anything else.

Returns None if it wrote them, or the user's item if a condition of theirs failed.
"""


class UserRateLimiter:
    """Charges users for one kind of request.

    It caches each user's last known usage, so that a charge usually takes one call.
    """

    def __init__(
        self, limit: RateLimit, *, fails_open: bool = False, cached_users: int = CACHED_USERS
    ) -> None:
        """Enforce `limit`.

        Args:
            limit: What users may do.
            fails_open: Whether requests pass while storage is unavailable; else they are refused.
            cached_users: The number of users whose usage is cached.
        """
        self._limit = limit
        self._fails_open = fails_open
        self._cached_users = cached_users
        self._usages: OrderedDict[str, Usage] = OrderedDict()

    def charge(
        self,
        user_key: str,
        now: EpochMs,
        write: WriteCharge,
        *,
        messages: int = 0,
        units: int = 1,
    ) -> None:
        """Charge one request that sends `messages` messages.

        Args:
            user_key: The user's key in the users table.
            now: The time of the request.
            write: Writes the charge, and raises what it likes.
            messages: The quota counts these or the units, whichever are more; without messages,
                it counts nothing.
            units: The request's weight; see `RateLimit.charge`.

        Raises:
            RateLimited, QuotaExceeded: With the seconds after which a retry will succeed.
            Contended: Others charged the same user too often meanwhile.
            Unavailable: From `write`, unless the limiter fails open.
        """
        quota = max(messages, units) if messages else 0
        self._write(
            user_key,
            write,
            lambda usage: self._limit.charge(usage, now, units=units, quota=quota),
        )

    def owe(self, user_key: str, now: EpochMs, write: WriteCharge, debt: Debt) -> None:
        """Charge a debt, which is never refused. Raises Contended and Unavailable as `charge`."""
        self._write(
            user_key,
            write,
            lambda usage: self._limit.owe(usage, now, units=debt.units, quota=debt.quota),
        )

    def owe_at_least(self, user_key: str, now: EpochMs, write: WriteCharge, units: int) -> None:
        """Let the user owe `units` from `now` on, unless they owe as much. Raises as `owe`."""
        self._write(user_key, write, lambda usage: self._limit.owe_at_least(usage, now, units))

    def check(self, user_key: str, now: EpochMs) -> None:
        """Raise RateLimited if the cached usage shows that a charge would be refused."""
        self._limit.charge(self._usages.get(user_key, Usage()), now)

    def note_usage(self, user_key: str, user: Mapping[str, Any]) -> None:
        """Cache the usage that a user's item records, which was read for another reason."""
        self._cache(user_key, self._limit.usage(user))

    def _write(
        self, user_key: str, write: WriteCharge, charge_given: Callable[[Usage], Charge | None]
    ) -> None:
        """Write a charge, which depends on the user's usage. It may be that there is none."""
        usage = self._usages.get(user_key, Usage())
        for _ in range(TRIES):
            charge = charge_given(usage)
            if charge is None:
                return
            try:
                user = write(charge.clauses)
            except Contended:
                raise  # a flood must not open the limiter that is there to stop it
            except Unavailable as error:
                if not self._fails_open:
                    logger.error("refused, since the limiter fails closed: %s", error.detail)
                    raise
                logger.warning("not counted, since the limiter fails open: %s", error.detail)
                return
            if user is None:
                self._cache(user_key, charge.usage)
                return
            usage = self._limit.usage(user)
            self._cache(user_key, usage)
        raise Contended("too many requests of this user at once", retry_after=1.0)

    def _cache(self, user_key: str, usage: Usage) -> None:
        self._usages.pop(user_key, None)  # it becomes the newest; other threads may charge, too
        self._usages[user_key] = usage
        if len(self._usages) > self._cached_users:
            self._usages.popitem(last=False)
