"""EventBridge: invokes the app's scheduled functions, each at its rate.

https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-scheduled-rule-pattern.html
"""

import asyncio
import re
import time
from typing import Any
from uuid import uuid4

from gateway.api.events import ACCOUNT, REGION
from gateway.functions.environments import Environments, FunctionError
from gateway.log import log_line

RATE = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
UNITS = {"minute": 60, "hour": 60 * 60, "day": 24 * 60 * 60}
TICK_SECONDS = 0.2


async def run_schedules(environments: Environments, every: float | None) -> None:
    """Invoke what the app declares, until cancelled; every so many seconds where that is given.

    The first time is one period after a function was first seen, as it is on AWS. A function that
    is not done when its time comes again is left at it.
    """
    due: dict[str, float] = {}
    running: dict[str, asyncio.Task[None]] = {}
    while True:
        now = time.monotonic()
        for function, expression in environments.declared["schedules"].items():
            seconds = every or _seconds(expression)
            if function not in due:
                due[function] = now + seconds
                if seconds == float("inf"):
                    log_line("SCHEDULE", f"{function} does not run here: {expression}")
            if now >= due[function] and (function not in running or running[function].done()):
                due[function] = now + seconds
                running[function] = asyncio.create_task(_invoke(environments, function))
        await asyncio.sleep(TICK_SECONDS)


async def _invoke(environments: Environments, function: str) -> None:
    try:
        await environments.invoke(function, scheduled_event(function))
    except FunctionError as error:
        log_line("ERROR", f"{function} failed: {error}")


def _seconds(expression: str) -> float:
    """The period of a rate; no other expression ever comes due."""
    match = RATE.fullmatch(expression)
    return int(match[1]) * UNITS[match[2]] if match else float("inf")


def scheduled_event(function: str) -> dict[str, Any]:
    """What EventBridge invokes a scheduled function with."""
    return {
        "version": "0",
        "id": str(uuid4()),
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": ACCOUNT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "region": REGION,
        "resources": [f"arn:aws:events:{REGION}:{ACCOUNT}:rule/herald-local-{function}"],
        "detail": {},
    }
