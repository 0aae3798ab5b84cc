"""Every benchmark ends."""

import time

import pytest

from bench import __main__ as benchmarks
from bench import flood, simulate
from bench.bound import BOUNDS, BoundReached, bounded

INSTANT = 0.1 / 60
ALL = (
    "cold_start",
    "end_to_end",
    "fanout",
    "flood",
    "load",
    "memory",
    "neighbours",
    "queued",
    "roster",
)


@bounded(INSTANT)
def endless() -> None:
    while True:
        time.sleep(0.01)


@bounded(minutes=10)
def short() -> str:
    return "done"


def test_a_benchmark_that_reaches_its_bound_ends_and_says_so() -> None:
    with pytest.raises(BoundReached, match="reached its bound of"):
        endless()


def test_a_benchmark_within_its_bound_is_not_disturbed() -> None:
    assert short() == "done"


def test_every_benchmark_has_a_bound() -> None:
    assert {f"bench.{name}" for name in (*ALL, "resume")} | {simulate.__name__} <= BOUNDS.keys()


def test_the_next_benchmark_runs_after_one_that_reached_its_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*ALL, "resume"):
        monkeypatch.setattr(getattr(benchmarks, name), "main", lambda *_: print("done"))
    monkeypatch.setattr(benchmarks, "stub", lambda: pytest.MonkeyPatch.context())
    monkeypatch.setattr(flood, "main", endless)
    assert benchmarks.main() == 1
    assert capsys.readouterr().out.count("done") == len(ALL)
