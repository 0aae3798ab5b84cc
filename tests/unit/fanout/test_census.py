"""Counting the active tenants. `test_rate.py` simulates many workers at once."""

from typing import Any

import pytest

from chalicelib.errors import Unavailable
from chalicelib.fanout.census import LONGEST_STEP, PERIOD, STEP, Census, step
from chalicelib.store.dynamodb import Store
from tests.support.world import LIFE


class Clock:
    """A clock in epoch microseconds."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * PERIOD

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def census(client: Any, clock: Clock) -> Census:
    return Census(Store(client, LIFE), region="us-east-1", now=clock)


@pytest.mark.parametrize("tenants", [1, 3, 40])
def test_every_environment_reads_how_many_tenants_were_counted(
    life: Any, clock: Clock, tenants: int
) -> None:
    counting, reading = census(life, clock), census(life, clock)
    for _ in range(tenants):
        counting.count(clock.now // PERIOD)
    reading.refresh()
    assert reading.tenants == tenants


def test_tenants_of_the_period_before_count_until_they_had_time_to_reserve_again(
    life: Any, clock: Clock
) -> None:
    counting, reading = census(life, clock), census(life, clock)
    for _ in range(4):
        counting.count(clock.now // PERIOD)
    clock.now += PERIOD
    reading.refresh()
    assert reading.tenants == 4
    clock.now += PERIOD * 9 // 10
    reading.refresh()
    assert reading.tenants == 1


def test_the_last_known_number_stays_while_storage_is_in_trouble(life: Any, clock: Clock) -> None:
    class Down(Store):
        def batch_get(self, *_: Any, **__: Any) -> Any:
            raise Unavailable("storage is unreachable")

    reading = Census(Down(life, LIFE), region="us-east-1", now=clock)
    reading.tenants = 7
    reading.refresh()
    assert reading.tenants == 7


def test_many_tenants_reserve_less_often_but_twice_a_second_at_least() -> None:
    assert [step(1), step(20), step(1000)] == [STEP, STEP, LONGEST_STEP]
