"""The simulation behind `docs/scale.md` obeys its own limits, and the page shows its results."""

import json
import re

import pytest

from bench.month import PING_SECONDS
from bench.simulate import PACED, POLICIES, RESULT, Broadcast, Crowd, Policy, tables
from clients.python.herald_client import Options
from gateway.configuration import PROJECT

PER_WORKER = 5_000


def test_the_page_shows_the_simulated_tables() -> None:
    page = (PROJECT / "docs" / "scale.md").read_text()
    for table in tables(json.loads(RESULT.read_text())):
        assert "\n".join(table) in page


@pytest.mark.parametrize("quota", [1_000, 10_000, 100_000])
def test_a_broadcast_is_no_faster_than_its_rate_and_its_workers(quota: int) -> None:
    recipients = 100_000
    broadcast = Broadcast(recipients, quota, PER_WORKER)
    seconds = broadcast.seconds()
    a_page_early = 1_000
    assert seconds >= (recipients - a_page_early) / (PACED * quota)
    assert seconds >= recipients / (PER_WORKER * broadcast.workers)


def test_a_larger_quota_never_makes_a_broadcast_slower() -> None:
    seconds = [Broadcast(10**5, quota, PER_WORKER).seconds() for quota in (2_500, 10_000, 50_000)]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_clients_reconnect_no_faster_than_the_quota_allows(policy: Policy) -> None:
    crowd = Crowd(50_000, policy, connects=500).run()
    assert crowd["backAfter"] >= 0.99 * 50_000 / 500 - 60
    assert crowd["online"][-1] > 0.9
    assert max(crowd["online"]) <= 1


def test_the_simulated_clients_ping_as_often_as_the_clients_do() -> None:
    assert Options().ping_every == PING_SECONDS
    javascript = (PROJECT / "clients" / "js" / "herald.js").read_text()
    [minutes] = re.findall(r"pingEvery: (\d+) \* 60_000", javascript)
    assert int(minutes) * 60 == PING_SECONDS
