"""Whatever one sender does within the limits, others notice nothing of it.

`bench/neighbours.py` measures how long others wait. These tests assert what that follows from, and
what doesn't depend on this machine: AWS refuses almost none of the calls that are made for them. A
call that is throttled is repeated after a pause, or fails.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from tests.support.neighbours.loud import ACTS, VICTIM, Loud, loud
from tests.support.neighbours.neighbour import Experience, Neighbours, neighbours, send_all
from tests.support.neighbours.neighbourhood import (
    LOUD_TENANT,
    QUIET_TENANT,
    Neighbourhood,
    Scale,
    neighbourhood,
)

SECONDS = 8.0
PER_SECOND = {"post": 4.0, "frame": 2.0, "same tenant": 2.0, "same recipient": 1.0}
QUIET = ("post", "frame")
MAX_THROTTLED = 0.1
"""The most throttled calls for a message of another tenant. The median allows almost a half."""

pytestmark = pytest.mark.timeout(180)


class Street:
    """The neighbours and the loud sender, connected."""

    def __init__(self, place: Neighbourhood) -> None:
        self.place = place
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.loud: Loud
        self._neighbours: Neighbours
        self._runner.run(self._connect())

    async def _connect(self) -> None:
        self.loud = await self._stack.enter_async_context(loud(self.place))
        self._neighbours = await self._stack.enter_async_context(
            neighbours(
                self.place, quiet_tenant=QUIET_TENANT, loud_tenant=LOUD_TENANT, victim=VICTIM
            )
        )
        await self._send(2)  # execution environments start
        self.quiet_connections = self.place.connection_ids(QUIET_TENANT)

    async def _send(self, seconds: float) -> dict[str, Experience]:
        return await send_all(self._neighbours, seconds, PER_SECOND.__getitem__)

    def beside(self, act: str) -> dict[str, Experience]:
        """Let the neighbours send beside the loud sender's act. Returns what each experienced."""

        async def run() -> dict[str, Experience]:
            await self.place.settle()
            self.loud.outcomes.clear()
            async with self.loud.acting(act):
                return await self._send(SECONDS)

        return self._runner.run(run())

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def street() -> Iterator[Street]:
    with neighbourhood(Scale.from_environ(os.environ)) as place:
        street = Street(place)
        yield street
        street.close()


@pytest.mark.parametrize("act", ACTS)
def test_nobody_notices_what_one_sender_does(street: Street, act: str) -> None:
    experiences = street.beside(act)
    counts = street.place.proxy.counts()
    assert street.loud.outcomes, "the loud sender did nothing"
    for name, experience in experiences.items():
        assert experience.failures == 0, (name, experience.outcomes, street.loud.outcomes)
    sent = sum(len(experiences[name].latencies) for name in QUIET)
    assert sum(experiences[name].outcomes["ok"] for name in QUIET) == sent
    throttled = counts.throttled.get(QUIET_TENANT, {})
    refused = sum(counts.refused.get(one, 0) for one in street.quiet_connections)
    assert sum(throttled.values()) + refused <= MAX_THROTTLED * sent, (throttled, refused)
