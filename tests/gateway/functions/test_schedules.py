"""The times at which scheduled functions run."""

import asyncio
from typing import Any

import pytest

from gateway.functions.execution_environment import FunctionError
from gateway.functions.schedules import run_schedules


class Environments:
    """Stands in for the execution environments; `slow` never ends, and `broken` fails."""

    def __init__(self, **schedules: str) -> None:
        self.declared = {"schedules": schedules}
        self.events: list[tuple[str, Any]] = []
        self.slow = asyncio.Event()

    async def invoke(self, function: str, event: Any) -> None:
        self.events.append((function, event))
        if function == "slow":
            await self.slow.wait()
        if function == "broken":
            raise FunctionError("ValueError", "it is broken")


async def run(environments: Any, every: float | None, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await run_schedules(environments, every)


def test_each_function_runs_on_time_and_never_overlaps_itself() -> None:
    async def scenario() -> Environments:
        environments = Environments(sweep="rate(1 minute)", slow="rate(1 minute)", broken="x")
        await run(environments, 0.2, 1.5)
        return environments

    events = asyncio.run(scenario()).events
    functions = [function for function, _ in events]
    assert functions.count("sweep") >= 2
    assert functions.count("broken") >= 2
    assert functions.count("slow") == 1
    event = events[0][1]
    assert (event["source"], event["detail-type"]) == ("aws.events", "Scheduled Event")


def test_each_function_waits_for_its_own_period_and_cron_is_not_run() -> None:
    async def scenario() -> Environments:
        environments = Environments(sweep="rate(1 minute)", nightly="cron(0 3 * * ? *)")
        await run(environments, None, 0.5)
        return environments

    assert asyncio.run(scenario()).events == []
