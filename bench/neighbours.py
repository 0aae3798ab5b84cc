"""Senders' latency beside one user who does the worst that the limits allow.

    .venv/bin/python -m bench.neighbours
    SCALE=40 TABLE_WRITES=40000 .venv/bin/python -m bench.neighbours "to one stream" resumes

Herald runs behind a proxy with DynamoDB's limits and the quota of `@connections`
(`tests/support/limits`). AWS's limits and Herald's own are divided by SCALE, 20 by default, so that
they are reached long before this machine's own. TABLE_WRITES, TABLE_READS, PARTITION_WRITES,
PARTITION_READS, BURST_SECONDS, CONNECTIONS_RATE and CONNECTIONS_BURST set AWS's limits before that.
Arguments name the acts to measure; without any, all are measured.

For each act, neighbours send alone and beside it in turns. Each has a row: `post` and `frame` are
in another tenant, and send over REST and over WebSockets; `same tenant` and `same recipient` are in
the loud sender's, and the latter sends to the loud sender's victim. A row has the median latency
alone and beside the act, the median of the rounds' ratios, the 99th percentile beside it, and the
messages that failed or were not stored. Below the rows of an act are the answers to the loud
sender, AWS's refusals, and the units that the tables spent in a second.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.bound import bounded
from bench.quick_mode import full_or_quick, write_result
from tests.support.limits.proxy import Counts
from tests.support.neighbours.loud import ACTS, VICTIM, Loud, loud
from tests.support.neighbours.neighbour import Experience, Neighbours, neighbours, send_all
from tests.support.neighbours.neighbourhood import (
    LOUD_TENANT,
    QUIET_TENANT,
    Neighbourhood,
    Scale,
    neighbourhood,
)

ROUNDS = full_or_quick(3, 1)
SECONDS = full_or_quick(8.0, 2.0)
WARM_UP_ROUNDS = full_or_quick(3, 1)
PER_SECOND = {"post": 4.0, "frame": 2.0, "same tenant": 2.0, "same recipient": 1.0}
RESULT = Path(__file__).parent / "results" / "neighbours.json"


@dataclass
class Pairs:
    """A neighbour's rounds alone, and those beside the loud sender."""

    alone: list[Experience] = field(default_factory=list)
    beside: list[Experience] = field(default_factory=list)

    def figures(self) -> dict[str, float | dict[str, int]]:
        """Return the figures of a row: latencies in ms, and outcomes beside the loud sender."""
        ratios = [
            statistics.median(beside.latencies) / statistics.median(alone.latencies)
            for alone, beside in zip(self.alone, self.beside, strict=True)
        ]
        alone, beside = _sum(self.alone), _sum(self.beside)
        return {
            "aloneMs": statistics.median(alone.latencies) * 1000,
            "besideMs": statistics.median(beside.latencies) * 1000,
            "ratio": statistics.median(ratios),
            "p99Ms": statistics.quantiles(beside.latencies, n=100, method="inclusive")[98] * 1000,
            "failed": beside.failures,
            "unstored": beside.outcomes["not stored"],
            "failedAlone": alone.failures,
            "outcomes": dict(beside.outcomes),
        }


def _sum(experiences: Sequence[Experience]) -> Experience:
    total = Experience()
    for experience in experiences:
        total.add(experience)
    return total


async def measure(place: Neighbourhood, acts: Sequence[str]) -> dict[str, object]:
    """Measure each act, and print its rows. Returns the figures by act."""
    results: dict[str, object] = {}
    async with (
        loud(place) as sender,
        neighbours(
            place, quiet_tenant=QUIET_TENANT, loud_tenant=LOUD_TENANT, victim=VICTIM
        ) as others,
    ):
        for _ in range(WARM_UP_ROUNDS):
            await _send(others)
        for act in acts:
            results[act] = await _measure_act(place, sender, others, act)
    return results


async def _send(others: Neighbours) -> dict[str, Experience]:
    return await send_all(others, SECONDS, PER_SECOND.__getitem__)


async def _measure_act(
    place: Neighbourhood, sender: Loud, others: Neighbours, act: str
) -> dict[str, object]:
    pairs = {name: Pairs() for name in others}
    counted: list[tuple[Counts, float]] = []
    sender.outcomes.clear()
    for number in range(ROUNDS):
        for beside in (False, True) if number % 2 == 0 else (True, False):
            await place.settle()
            if not beside:
                for name, experience in (await _send(others)).items():
                    pairs[name].alone.append(experience)
                continue
            started = time.monotonic()
            async with sender.acting(act):
                for name, experience in (await _send(others)).items():
                    pairs[name].beside.append(experience)
                counted.append((place.proxy.counts(), time.monotonic() - started))
    rows = {name: one.figures() for name, one in pairs.items()}
    result = {"neighbours": rows, "loud": dict(sender.outcomes), **_aws(counted)}
    _print_act(act, rows, result)
    return result


def _aws(counted: Sequence[tuple[Counts, float]]) -> dict[str, object]:
    """Return what AWS refused and spent beside the loud sender, in all rounds."""
    seconds = sum(took for _, took in counted)
    throttled: dict[str, Counter[str]] = {}
    units: Counter[str] = Counter()
    refused = 0
    for counts, _ in counted:
        refused += sum(counts.refused.values())
        for owner, reasons in counts.throttled.items():
            throttled.setdefault(owner or "nobody's", Counter()).update(reasons)
        for table, kinds in counts.units.items():
            for kind, spent in kinds.items():
                units[f"{table.removeprefix('herald-')} {kind}"] += round(spent)
    return {
        "throttled": throttled,
        "refusedByConnections": refused,
        "unitsPerSecond": {name: round(spent / seconds, 1) for name, spent in units.items()},
    }


def _print_act(
    act: str, rows: dict[str, dict[str, float | dict[str, int]]], result: dict[str, object]
) -> None:
    head = ("alone ms", "beside ms", "ratio", "p99 ms", "failed", "not stored")
    print(f"\n{act:28}", *(f"{title:>10}" for title in head))
    for name, row in rows.items():
        print(
            f"  {name:26} {row['aloneMs']:>10.1f} {row['besideMs']:>10.1f} {row['ratio']:>10.2f}"
            f" {row['p99Ms']:>10.1f} {row['failed']:>10} {row['unstored']:>10}"
        )
        if row["failed"]:
            print(f"    {json.dumps(row['outcomes'])}")
    for title in ("loud", "throttled", "refusedByConnections", "unitsPerSecond"):
        print(f"  {title}: {json.dumps(result[title])}", flush=True)


@bounded(minutes=90)
def main(acts: Sequence[str] = ACTS) -> None:
    scale = Scale.from_environ(os.environ)
    print(f"Neighbours of a loud sender, with all limits divided by {scale.factor:g}")
    with neighbourhood(scale) as place:
        results = asyncio.run(measure(place, acts))
    if tuple(acts) == ACTS:
        text = json.dumps({"factor": scale.factor, "acts": results}, indent=1)
        write_result(RESULT, text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ACTS)
