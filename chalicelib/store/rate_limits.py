"""How much a user may do: rates by GCRA, and a quota for each day.

The generic cell rate algorithm (ITU-T I.371, section 6.2.2.1.1) remembers one number: the moment
at which the user's next request would be due if they kept to their rate (the theoretical arrival
time). Who comes earlier than that by more than the burst allows is refused. That number, and the
day's count, are attributes of the user's item; charging is a part of whatever else is written to
the item in the same call.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chalicelib.errors import Contended, QuotaExceeded, RateLimited, Unavailable
from chalicelib.store.expressions import Clause, number

QUOTA_ATTRIBUTE = "quota"
COUNTS = 10**9  # a quota's state is one number: the day times this, plus the day's count
DAY_MS = 24 * 60 * 60 * 1000
TRIES = 6
USERS_REMEMBERED = 10_000

logger = logging.getLogger("herald.limits")


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` requests at once, and one more every `interval` microseconds."""

    interval: int
    burst: int

    @classmethod
    def per_second(cls, rate: float, burst: int) -> "Rate":
        return cls(max(1, round(1_000_000 / rate)), burst)

    @classmethod
    def per_minute(cls, rate: float) -> "Rate":
        """A minute's requests may come at once."""
        return cls(max(1, round(60_000_000 / rate)), max(1, int(rate)))


@dataclass(frozen=True, slots=True)
class Usage:
    """What a user's item says of what they did. `due` is in epoch microseconds."""

    due: int = 0
    quota: int = 0


class Limiter:
    """One kind of request: its rate, and the daily quota where it has one. No I/O here."""

    def __init__(self, attribute: str, rate: Rate, daily_quota: int = 0) -> None:
        """`attribute` is where users' items keep `Usage.due`. A quota of 0 is none."""
        self._attribute = attribute
        self._rate = rate
        self._quota = daily_quota

    def usage(self, user: Mapping[str, Any]) -> Usage:
        """The usage in a user's item."""
        due, quota = user.get(self._attribute), user.get(QUOTA_ATTRIBUTE)
        return Usage(int(due["N"]) if due else 0, int(quota["N"]) if quota else 0)

    def charge(self, usage: Usage, now: int, messages: int) -> tuple[list[Clause], Usage]:
        """The update that charges one request with so many messages, and the usage after it.

        Its conditions hold for `usage` and for whatever others make of it meanwhile, as far as
        an expression can say that. `now` is in epoch milliseconds. Raises RateLimited and
        QuotaExceeded.
        """
        rate, due = self._charge_rate(usage.due, now * 1000)
        if not (self._quota and messages):
            return [rate], Usage(due, usage.quota)
        quota, count = self._charge_quota(usage.quota, now, messages)
        return [rate, quota], Usage(due, count)

    def _charge_rate(self, due: int, now: int) -> tuple[Clause, int]:
        interval = self._rate.interval
        latest = now + (self._rate.burst - 1) * interval
        if due > latest:
            raise RateLimited("too many requests", retry_after=(due - latest) / 1_000_000)
        names = {"#due": self._attribute}
        if due > now:
            part = Clause(
                set=("#due = #due + :interval",),
                when=("#due > :at AND #due <= :latest",),
                names=names,
                values={
                    ":interval": number(interval),
                    ":at": number(now),
                    ":latest": number(latest),
                },
            )
            return part, due + interval
        part = Clause(
            set=("#due = :due",),
            when=("attribute_not_exists(#due) OR #due <= :at",),
            names=names,
            values={":due": number(now + interval), ":at": number(now)},
        )
        return part, now + interval

    def _charge_quota(self, quota: int, now: int, messages: int) -> tuple[Clause, int]:
        day, in_day = divmod(now, DAY_MS)
        today = day * COUNTS
        names = {"#quota": QUOTA_ATTRIBUTE}
        used = max(0, quota - today)
        if used + messages > self._quota:
            raise QuotaExceeded(
                f"the day's quota is {self._quota} messages, of which {used} are used",
                retry_after=(DAY_MS - in_day) / 1000,
            )
        if quota < today:
            part = Clause(
                set=("#quota = :quota",),
                when=("attribute_not_exists(#quota) OR #quota < :today",),
                names=names,
                values={":quota": number(today + messages), ":today": number(today)},
            )
            return part, today + messages
        part = Clause(
            set=("#quota = #quota + :messages",),
            when=("#quota BETWEEN :today AND :most",),
            names=names,
            values={
                ":messages": number(messages),
                ":today": number(today),
                ":most": number(today + self._quota - messages),
            },
        )
        return part, quota + messages


Write = Callable[[Sequence[Clause]], Mapping[str, Any] | None]
"""Writes the parts, with whatever else; the user's item where a condition of theirs failed."""


class Meter:
    """Charges users, most often in one call: it remembers what it saw of each of late."""

    def __init__(self, limiter: Limiter, *, fails_open: bool = False) -> None:
        """When storage can't be asked, requests are refused; or they pass if it `fails_open`."""
        self._limiter = limiter
        self._fails_open = fails_open
        self._known: OrderedDict[str, Usage] = OrderedDict()

    def charge(self, user_key: str, now: int, write: Write, messages: int = 0) -> None:
        """Charge one request with so many messages, by `write`. `now` is in epoch milliseconds.

        Raises RateLimited and QuotaExceeded, with the seconds after which it will do; Contended;
        and what `write` raises, but for Unavailable if it fails open.
        """
        usage = self._known.get(user_key, Usage())
        for _ in range(TRIES):
            parts, charged = self._limiter.charge(usage, now, messages)
            try:
                user = write(parts)
            except Contended:
                raise
            except Unavailable as error:
                if not self._fails_open:
                    logger.error("refused, since the limiter fails closed: %s", error.detail)
                    raise
                logger.warning("not counted, since the limiter fails open: %s", error.detail)
                return
            if user is None:
                self._remember(user_key, charged)
                return
            usage = self._limiter.usage(user)
            self._remember(user_key, usage)
        raise Contended("the user asks for too much at once", retry_after=1.0)

    def check(self, user_key: str, now: int) -> None:
        """Raise RateLimited for a request whose charge will be refused, as far as is remembered."""
        self._limiter.charge(self._known.get(user_key, Usage()), now, 0)

    def _remember(self, user_key: str, usage: Usage) -> None:
        self._known[user_key] = usage
        self._known.move_to_end(user_key)
        if len(self._known) > USERS_REMEMBERED:
            self._known.popitem(last=False)
