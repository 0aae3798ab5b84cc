"""The deadline of some work, and how an invocation's deadlines follow from Lambda's time-out."""

import time
from typing import Any, Final

from chalicelib.aws_limits import ANSWER_RESERVE_SECONDS, WORK_SECONDS


class Deadline:
    """The moment at which some work must end.

    `at` is that moment in `time.monotonic` seconds, for loops that have read this clock anyway.
    """

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at: Final = at

    @staticmethod
    def after(seconds: float) -> "Deadline":
        """Return the deadline that is `seconds` from now."""
        return Deadline(time.monotonic() + seconds)

    def left(self) -> float:
        """Return the seconds that are left, 0 after the deadline."""
        return max(0.0, self.at - time.monotonic())

    def passed(self) -> bool:
        """Return whether the deadline has passed."""
        return time.monotonic() >= self.at

    def earlier(self, seconds: float) -> "Deadline":
        """Return the deadline that is `seconds` before this one."""
        return Deadline(self.at - seconds)

    def later(self, seconds: float) -> "Deadline":
        """Return the deadline that is `seconds` after this one."""
        return Deadline(self.at + seconds)

    def within(self, seconds: float) -> "Deadline":
        """Return this deadline, or the one that is `seconds` from now if that is sooner."""
        return Deadline(min(self.at, time.monotonic() + seconds))


def work_deadline(context: Any) -> Deadline:
    """Return when work must end so that Lambda does not cut the invocation off.

    `context` is Lambda's context object. Chalice passes it on under other types, hence `Any`.
    """
    left: float = context.get_remaining_time_in_millis() / 1000
    return Deadline.after(left - ANSWER_RESERVE_SECONDS)


def answer_deadline(context: Any) -> Deadline:
    """Return when work must end so that API Gateway still receives the answer."""
    return work_deadline(context).within(WORK_SECONDS)
