"""Simulates how far the design scales: broadcasts, reconnects, and costs of a million connections.

    make simulate             # writes `results/scale.json`, and draws the plots of `docs/scale.md`

The printed tables are those of `docs/scale.md`: seconds to a broadcast's last recipient, by quota
and worker size; how clients return after a mass disconnect, by reconnect policy; and dollars a
month, by component (`bench.month`).

The cost of a delivery is taken from the results of `bench.queued` and `bench.fanout`. Quotas and
prices are AWS's; each names the page that it is from. Nothing here has run on AWS.
"""

import json
import random
import statistics
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simpy

from bench import units
from bench.bound import bounded
from bench.month import (
    HEARTBEAT_SECONDS,
    LIFE_SECONDS,
    MEGABYTES_PER_CPU,
    PING_SECONDS,
    floor,
    months,
    ratio,
    services,
)
from chalicelib.delivery.congestion import MAX_WINDOW
from chalicelib.fanout import census
from chalicelib.fanout.limits import DEFAULT_LIMITS
from chalicelib.fanout.publisher import shards_for
from chalicelib.store.audience import PAGE_ITEMS

RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "scale.json"

# https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
QUOTA = 10_000  # requests per second, `@connections` included; 2,500 in some regions
BURST = 0.5  # of the quota of a second: 5,000 of 10,000
# https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-execution-service-websocket-limits-table.html
CONNECTS = 500  # new connections per second
IDLE_SECONDS = 10 * 60
# https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html
FIRST_WORKERS, MORE_WORKERS_PER_SECOND, MAX_WORKERS, BATCH = 5, 5, 1000, 10

# Guesses, each slower than what is usual within a region:
LATENCY = 0.010  # a call of `@connections`, as in the benchmarks
RECEIVE = 0.030  # from SQS to the function
COLD_START = 0.8
JOB = 0.030  # five calls: claim, content, result, and re-queueing the rest
PACED = 0.8  # share of the quota, as `HERALD_FANOUT_RATE` has it by default

Event = Generator[simpy.Event, Any, None]


# --- One broadcast


@dataclass(slots=True)
class Job:
    """A job of the queue: the recipients of a shard that are left."""

    left: int


def background(connections: int) -> float:
    """Return the requests per second of idle clients.

    They are pings and heartbeats, the handshakes, the resumes, and the answers that functions post
    through `@connections`. API Gateway's own answer to a ping is not a request.
    """
    answered = connections / HEARTBEAT_SECONDS + connections / LIFE_SECONDS
    return connections / PING_SECONDS + connections / LIFE_SECONDS * 2 + answered


class Gateway:
    """API Gateway's token bucket, from which other traffic takes `others` requests per second."""

    def __init__(self, environment: simpy.Environment, quota: int, others: float) -> None:
        self._environment = environment
        self._rate = quota - others
        self._burst = self._tokens = BURST * quota
        self._at = 0.0
        self.throttled = 0.0

    def take(self, requests: int) -> float:
        """Return the seconds until `requests` are accepted; count the throttled ones."""
        now = self._environment.now
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - requests
        self._at = now
        missing = max(0.0, -self._tokens)
        self.throttled += min(missing, requests)
        return missing / self._rate


class Broadcast:
    """One message to all recipients, who are otherwise idle."""

    def __init__(self, recipients: int, quota: int, per_worker: float) -> None:
        """Prepare a broadcast.

        Args:
            recipients: The number of connections.
            quota: Requests per second, which must exceed the background traffic.
            per_worker: The deliveries per second of a worker.
        """
        self._environment = simpy.Environment()
        self.gateway = Gateway(self._environment, quota, background(recipients))
        self._queue = simpy.Store(self._environment)
        self._per_worker = min(per_worker, MAX_WINDOW / LATENCY)
        self._pace = PACED * quota
        self._due = 0.0
        self._left = recipients
        self._last = 0.0
        self.workers = 0
        shards = shards_for(recipients)
        for shard in range(shards):
            self._queue.put(Job((recipients + shard) // shards))
        self._environment.process(self._scale())

    def seconds(self) -> float:
        """Run the broadcast; return the seconds from the 202 to the last recipient."""
        self._environment.run()
        return self._last

    def _scale(self) -> Event:
        """Start workers as Lambda does: some at once, and more while jobs wait in the queue."""
        for _ in range(FIRST_WORKERS):
            self._environment.process(self._worker())
        self.workers = FIRST_WORKERS
        while self._left:
            yield self._environment.timeout(1.0)
            for _ in range(min(MORE_WORKERS_PER_SECOND, len(self._queue.items))):
                if self.workers < MAX_WORKERS:
                    self.workers += 1
                    self._environment.process(self._worker())

    def _worker(self) -> Event:
        cold = COLD_START
        while self._left:
            first = yield self._queue.get()
            yield self._environment.timeout(RECEIVE + cold)
            cold = 0.0
            batch = [first]
            while self._queue.items and len(batch) < BATCH:
                batch.append((yield self._queue.get()))
            for job in batch:
                yield self._environment.timeout(JOB)
                yield from self._slice(job, DEFAULT_LIMITS.slice_seconds / len(batch))
                if job.left:
                    self._queue.put(job)

    def _slice(self, job: Job, seconds: float) -> Event:
        end = self._environment.now + seconds
        while job.left and self._environment.now < end:
            page = min(PAGE_ITEMS, job.left, max(1, int(self._pace * census.STEP / census.SECOND)))
            self._due = max(self._due, self._environment.now) + page / self._pace
            waits = self._due - page / self._pace - self._environment.now
            yield self._environment.timeout(max(page / self._per_worker, waits))
            yield self._environment.timeout(self.gateway.take(page))
            job.left -= page
            self._left -= page
            self._last = self._environment.now + LATENCY


# --- A million connections


@dataclass(frozen=True, slots=True)
class Policy:
    """A reconnect policy of clients."""

    name: str
    first: float
    """The longest first pause in seconds; each further one is twice as long."""
    longest: float
    """The longest pause."""
    jitter: bool
    """True if each pause is random, up to its maximum."""
    early: float
    """The maximum seconds before the end of its life at which a connection is renewed."""
    life: float = LIFE_SECONDS
    """The seconds after which API Gateway closes a connection."""


POLICIES = (
    Policy("every second", 1, 1, jitter=False, early=0),
    Policy("backoff with jitter", 1, 60, jitter=True, early=0),
    Policy("backoff with jitter, early renewal", 1, 60, jitter=True, early=LIFE_SECONDS / 2),
    Policy("the same, without pings", 1, 60, jitter=True, early=0, life=IDLE_SECONDS),
)
SCALE = 500  # the number of clients that one simulated client stands for
STORM_AT = 600.0
HOURS = 5
STEP = 60.0


class Crowd:
    """Clients that always want to be connected.

    All of them are cut off at STORM_AT, for example by a network failure.
    """

    def __init__(self, connections: int, policy: Policy, connects: int, seed: int = 0) -> None:
        self._environment = simpy.Environment()
        self._random = random.Random(seed)
        self._policy = policy
        self._rate = connects / SCALE
        self._tokens, self._at = self._rate, 0.0
        self._storm = self._environment.timeout(STORM_AT)
        self.online = 0
        self.refused = 0
        self._clients = connections // SCALE
        for _ in range(self._clients):
            self._environment.process(self._client())

    def run(self) -> dict[str, Any]:
        """Return the share of clients online and the refused handshakes per second, by minute."""
        online: list[float] = []
        refused: list[float] = []
        before = 0
        for step in range(int(HOURS * 3600 / STEP)):
            self._environment.run((step + 1) * STEP)
            online.append(round(self.online / self._clients, 4))
            refused.append(round((self.refused - before) * SCALE / STEP))
            before = self.refused
        storm = int(STORM_AT / STEP)
        back = next((step for step in range(storm, len(online)) if online[step] > 0.99), None)
        return {
            "online": online,
            "refused": refused,
            "backAfter": None if back is None else (back + 1 - storm) * STEP,
            "leastLater": min(online[(back or storm) + 10 :]),
            "handshakesPerClient": (self.refused + self._clients) / self._clients,
        }

    def _client(self) -> Event:
        left = self._random.uniform(0, self._policy.life)  # of the connection that it starts with
        self.online += 1
        while True:
            ends = self._environment.timeout(left)
            yield ends if self._environment.now >= STORM_AT else ends | self._storm
            self.online -= 1
            yield from self._connect()
            self.online += 1
            left = self._policy.life - self._random.uniform(0, self._policy.early)

    def _connect(self) -> Event:
        longest = self._policy.first
        while True:
            pause = self._random.uniform(0, longest) if self._policy.jitter else longest
            yield self._environment.timeout(pause)
            if self._accepted():
                return
            self.refused += 1
            longest = min(self._policy.longest, longest * 2)

    def _accepted(self) -> bool:
        """Return whether the connect quota accepts a handshake now."""
        now = self._environment.now
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


# --- The whole simulation


def measured() -> dict[str, float]:
    """Return the measured deliveries per second of one processor, and of Chalice's own loop."""
    queued = json.loads((RESULTS / "queued.json").read_text())["runs"]
    fanout = json.loads((RESULTS / "fanout.json").read_text())
    [loop] = [
        entry["per_second"]
        for entry in fanout
        if (entry["name"], entry["latency_ms"]) == ("chalice", 10) and entry["payload"] == 200
        if entry["recipients"] == 10_000
    ]
    runs = queued["POST, 100,000"]
    return {
        "perCpu": statistics.median(run["per_second"] for run in runs),
        "chaliceLoop": loop,
    }


def simulate() -> dict[str, Any]:
    """Run every simulation, and return the results."""
    costs = measured()
    broadcasts = []
    for quota in (QUOTA, 10 * QUOTA):
        for megabytes in (512, MEGABYTES_PER_CPU):
            for power in range(3, 8):
                per_worker = costs["perCpu"] * min(1.0, megabytes / MEGABYTES_PER_CPU)
                entry: dict[str, Any] = {
                    "quota": quota,
                    "megabytes": megabytes,
                    "recipients": 10**power,
                }
                if background(10**power) < quota:
                    broadcast = Broadcast(10**power, quota, per_worker)
                    entry["seconds"] = round(broadcast.seconds(), 2)
                    entry["workers"] = broadcast.workers
                    entry["throttled"] = round(broadcast.gateway.throttled)
                broadcasts.append(entry)
    crowds = {
        f"{policy.name}, {connects:,}/s": Crowd(1_000_000, policy, connects).run()
        for policy in POLICIES
        for connects in (CONNECTS, 10 * CONNECTS)
    }
    costs_of = months(costs["perCpu"])
    floors = {
        name: {"floor": floor(parts), "ratio": round(ratio(parts), 3)}
        for name, parts in costs_of.items()
    }
    return {
        "measured": costs,
        "broadcasts": broadcasts,
        "crowds": crowds,
        "months": costs_of,
        "floors": floors,
        "services": services(costs["perCpu"]),
    }


def tables(results: dict[str, Any]) -> list[list[str]]:
    """Return the results as rows of the Markdown tables in `docs/scale.md`."""
    broadcasts: dict[int, list[str]] = {}
    for entry in results["broadcasts"]:
        cell = f"{entry['seconds']:,.1f}" if "seconds" in entry else "—"
        broadcasts.setdefault(entry["recipients"], []).append(cell)
    crowds = [
        f"| {name} | {_minutes(crowd['backAfter'])} | {crowd['leastLater']:.1%} |"
        f" {crowd['handshakesPerClient']:,.1f} |"
        for name, crowd in results["crowds"].items()
    ]
    names = list(next(iter(results["months"].values())))
    rows = [[name, *(f"{of[name]:,.0f}" for of in results["months"].values())] for name in names]
    of_months, floors = results["months"].values(), results["floors"].values()
    rows += [
        ["together", *(f"{sum(of.values()):,.0f}" for of in of_months)],
        ["of which API Gateway's floor", *(f"{of['floor']:,.0f}" for of in floors)],
        ["together, as a multiple of the floor", *(f"{of['ratio']:.3f}" for of in floors)],
    ]
    return [
        [f"| {count:,} | {' | '.join(cells)} |" for count, cells in broadcasts.items()],
        crowds,
        [f"| {' | '.join(row)} |" for row in rows],
        [
            f"| {event} | {spent.calls} | {spent.writes} | {spent.reads:g} |"
            for event, spent in units.EVENTS.items()
        ],
        [
            f"| {sent} | {' | '.join(f'{dollars:,.0f}' for dollars in by_service.values())} |"
            for sent, by_service in results["services"].items()
        ],
    ]


def _minutes(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds / 60:.0f} min"


@bounded(minutes=30)
def main() -> None:
    """Write the results, and print them as tables."""
    results = simulate()
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    for table in tables(results):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()
