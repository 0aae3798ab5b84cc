"""The months of `docs/scale.md` follow from prices and units, and cost hardly more than API
Gateway's own part."""

import json

import pytest

from bench import units
from bench.month import (
    FLOOR,
    HOURS_A_MONTH,
    IDLE,
    LIFE_SECONDS,
    LOADED,
    MAX_RATIO,
    MONTHS,
    PING_SECONDS,
    PRICES,
    Traffic,
    floor,
    month,
    months,
    ratio,
)
from bench.simulate import RESULT, measured

PER_CPU = 5_000
MILLION = 1_000_000
IDLE_FLOOR = 20_171
"""Dollars for the minutes of a million connections, and for a ping and a pong each nine and a half
minutes."""


@pytest.fixture(scope="module")
def simulated() -> dict[str, dict[str, float]]:
    return months(measured()["perCpu"])


@pytest.mark.parametrize("name", MONTHS)
def test_a_month_costs_hardly_more_than_its_floor(
    simulated: dict[str, dict[str, float]], name: str
) -> None:
    assert ratio(simulated[name]) <= MAX_RATIO[name]
    assert sum(simulated[name].values()) <= MAX_RATIO[name] * floor(simulated[name])


def test_the_stored_months_are_those_of_the_present_units(
    simulated: dict[str, dict[str, float]],
) -> None:
    stored = json.loads(RESULT.read_text())
    assert stored["months"] == {name: pytest.approx(parts) for name, parts in simulated.items()}
    for name, parts in simulated.items():
        assert stored["floors"][name]["floor"] == pytest.approx(floor(parts))
        assert stored["floors"][name]["ratio"] == pytest.approx(ratio(parts), abs=0.001)


def test_the_floor_of_an_idle_month_is_minutes_and_pings(
    simulated: dict[str, dict[str, float]],
) -> None:
    assert floor(simulated[IDLE]) == pytest.approx(IDLE_FLOOR, abs=1)
    assert [simulated[IDLE][name] > 0 for name in FLOOR] == [True, True, False, False]


def test_a_months_costs_are_the_prices_times_the_units() -> None:
    parts = month(Traffic(MILLION, broadcasts=1, messages=0), PER_CPU)
    assert parts["connection minutes"] == pytest.approx(HOURS_A_MONTH * 60 * 0.25)
    assert parts["deliveries"] == pytest.approx(1.0)
    handshakes = MILLION * HOURS_A_MONTH * 3600 / LIFE_SECONDS
    each = units.OPEN_IN_A_GROUP.plus(units.END_IN_A_GROUP)
    assert parts["DynamoDB: handshakes and ends"] == pytest.approx(
        handshakes * (each.writes * PRICES["DynamoDB write"] + each.reads * PRICES["DynamoDB read"])
    )


def test_clients_with_traffic_ping_less() -> None:
    silent, loaded = MONTHS[IDLE], MONTHS[LOADED]
    assert silent.pings == pytest.approx(MILLION * HOURS_A_MONTH * 3600 / PING_SECONDS)
    assert silent.pings / 2 < loaded.pings < silent.pings
    assert loaded.heartbeats < silent.heartbeats < silent.pings
    busy = loaded._replace(messages=loaded.messages * 100)
    assert busy.pings < silent.pings / 1000
