"""Deadlines of an invocation, in `time.monotonic` seconds, by the time that Lambda leaves it.

`context` is Lambda's context object. Chalice passes it on under other types, hence `Any`.
"""

import time
from typing import Any

from chalicelib.aws_limits import ANSWER_RESERVE_SECONDS, WORK_SECONDS


def work_deadline(context: Any) -> float:
    """Return when work must end so that Lambda does not cut the invocation off."""
    left: float = context.get_remaining_time_in_millis() / 1000
    return time.monotonic() + left - ANSWER_RESERVE_SECONDS


def answer_deadline(context: Any) -> float:
    """Return when work must end so that API Gateway still receives the answer."""
    return min(time.monotonic() + WORK_SECONDS, work_deadline(context))
