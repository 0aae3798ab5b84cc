"""EventBridge's schedules: invoke the app's scheduled functions, each at its rate.

https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-scheduled-rule-pattern.html
"""

import asyncio
import re
import time
from typing import Any
from uuid import uuid4

from gateway.aws.variables import ACCOUNT, REGION
from gateway.functions.environments import Environments
from gateway.functions.execution_environment import FunctionError
from gateway.log import log_line

RATE_EXPRESSION = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
UNIT_SECONDS = {"minute": 60, "hour": 60 * 60, "day": 24 * 60 * 60}
TICK_SECONDS = 0.2


async def run_schedules(environments: Environments, period: float | None) -> None:
    """Invoke the scheduled functions that the app declares, until this is cancelled.

    As on AWS, a function first runs one period after it was declared. It is skipped while its
    last invocation still runs.

    Args:
        environments: Where the functions run.
        period: The seconds between two invocations; None takes them from the schedules.
    """
    due: dict[str, float] = {}
    running: dict[str, asyncio.Task[None]] = {}
    while True:
        now = time.monotonic()
        for function, expression in environments.declared["schedules"].items():
            seconds = period or _period(expression)
            if function not in due:
                due[function] = now + seconds
                if seconds == float("inf"):
                    log_line(
                        "SCHEDULE", f"{function} won't run: {expression} is not a rate expression"
                    )
            if now >= due[function] and (function not in running or running[function].done()):
                due[function] = now + seconds
                running[function] = asyncio.create_task(_invoke(environments, function))
        await asyncio.sleep(TICK_SECONDS)


async def _invoke(environments: Environments, function: str) -> None:
    try:
        await environments.invoke(function, scheduled_event(function))
    except FunctionError as error:
        log_line("ERROR", f"{function} failed: {error}")


def _period(expression: str) -> float:
    """Return the seconds of a rate expression; infinity for any other, so that it never runs."""
    match = RATE_EXPRESSION.fullmatch(expression)
    return int(match[1]) * UNIT_SECONDS[match[2]] if match else float("inf")


def scheduled_event(function: str) -> dict[str, Any]:
    """Return the event with which EventBridge invokes a scheduled function."""
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
