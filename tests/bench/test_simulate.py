"""The simulation behind `docs/scale.md`: that it keeps its own rules, and that the page has it."""

import json

import pytest

from bench.simulate import PACED, POLICIES, RESULT, Broadcast, Crowd, month, tables
from gateway.configuration import PROJECT

PER_WORKER = 5_000


def test_the_page_has_what_was_simulated() -> None:
    page = (PROJECT / "docs" / "scale.md").read_text()
    for table in tables(json.loads(RESULT.read_text())):
        assert "\n".join(table) in page


@pytest.mark.parametrize("quota", [1_000, 10_000, 100_000])
def test_a_broadcast_keeps_to_the_pace(quota: int) -> None:
    recipients = 100_000
    broadcast = Broadcast(recipients, quota, PER_WORKER)
    seconds = broadcast.seconds()
    a_page_early = 1_000
    assert seconds >= (recipients - a_page_early) / (PACED * quota)
    assert seconds >= recipients / (PER_WORKER * broadcast.workers)


def test_more_quota_is_never_slower() -> None:
    seconds = [Broadcast(10**5, quota, PER_WORKER).seconds() for quota in (2_500, 10_000, 50_000)]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_crowd_comes_back_no_faster_than_the_quota_lets_it(policy: object) -> None:
    crowd = Crowd(50_000, policy, connects=500).run()  # type: ignore[arg-type]
    assert crowd["backAfter"] >= 0.99 * 50_000 / 500 - 60
    assert crowd["online"][-1] > 0.9
    assert max(crowd["online"]) <= 1


def test_a_month_of_a_million_connections_is_the_prices_times_the_minutes() -> None:
    costs = month(1_000_000, broadcasts=1, messages=0, per_cpu=PER_WORKER)
    assert costs["connection minutes"] == pytest.approx(730 * 60 * 0.25)
    assert costs["deliveries"] == pytest.approx(1.0)
