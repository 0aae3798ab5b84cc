"""A broadcast to 100,000 connections through the queue, beside the same delivered by POST itself.

From the request to the last recipient, in the local gateway with its workers, its queue and the
stub, on all cores. The two take turns. Then the same with a worker killed in the middle. Nobody may
be missed: the stub's log has every connection. Meanwhile another tenant sends to one connection,
which POST delivers itself, and to eleven, which go through the same queue.
"""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from bench.quick_mode import extent, keep
from bench.quiet import functions_unheard
from bench.stub import Stub, stub
from bench.tables import Tables, serving
from chalicelib.auth.principal import Principal
from chalicelib.fanout.publisher import shards_for
from chalicelib.store.items import Connection
from gateway.aws.emulator import client
from gateway.configuration import configuration
from gateway.server import Running, gateway
from gateway.tokens import token

COUNT = extent(100_000, 4000)
FEW = extent(10_000, 1000)
ROUNDS = extent(3, 1)
LATENCY_MS = 10
QUIET_SECONDS = 4.0
KILL_AFTER = extent(30_000, 1000)  # deliveries
HIDDEN_SECONDS = 5  # from a dead worker to the next; a deployed queue has a minute
OTHER = "other"
RESULT = Path(__file__).parent / "results" / "queued.json"
SECRET = {"HERALD_JWT_SECRET": "x" * 32}
INLINE = 10
FEW_USERS = [f"user-{number}" for number in range(INLINE + 1)]
PAUSE_SECONDS = 0.1
BODY = {"to": {"all": True}, "data": "x" * 100}


class Run(NamedTuple):
    """One broadcast. Seconds from the request; `megabytes` is the most that one process had."""

    first: float
    last: float
    answered: float
    per_second: float
    calls: int
    megabytes: float


class Small(NamedTuple):
    """Seconds from a small request to its last recipient: to one, and to eleven."""

    to_one: list[float]
    to_eleven: list[float]


class Place:
    """A gateway whose connections are all at the stub."""

    def __init__(self, running: Running, log: Path) -> None:
        self.running = running
        self._log = log
        self._http = httpx.AsyncClient(base_url=running.http, timeout=60)
        self._headers = {
            "Authorization": f"Bearer {token(SECRET, 'bench')}",
            "Content-Type": "application/json",
        }

    def say_how_many(self, count: int) -> None:
        """As the last sweep would have counted."""
        dynamodb = client("dynamodb", self.running.aws)
        for shard in range(4):
            item = {
                "user": {"S": f"sweep-connections-{shard}"},
                "active": {"N": str(count // 4)},
            }
            dynamodb.put_item(TableName="herald-users", Item=item)

    def let_in_a_few(self, endpoint: str) -> None:
        """Users of another tenant, with a connection each."""
        dynamodb = client("dynamodb", self.running.aws)
        for user in FEW_USERS:
            principal = Principal(user, int(time.time()) + 7200, tenant=OTHER)
            now = int(time.time() * 1000)
            connection = Connection(
                f"{OTHER}-{user}", principal, endpoint, connected_at=now, timestamp=now
            )
            item = {
                "user": {"S": principal.key},
                "connections": {"SS": [connection.connection_id]},
                f"@{connection.connection_id}": connection.recipient.reach(),
            }
            dynamodb.put_item(TableName="herald-users", Item=item)

    async def send_small(self, until: "asyncio.Event", small: Small) -> None:
        """Small messages, one after the other, until something has happened."""
        headers = {**self._headers, "Authorization": f"Bearer {token(SECRET, 'b', tenant=OTHER)}"}
        while not until.is_set():
            for users, times in ((FEW_USERS[:1], small.to_one), (FEW_USERS, small.to_eleven)):
                arrived = len(self._calls(OTHER))
                began = time.time()
                body = {"to": {"users": users}, "data": 1}
                await self._http.post("/messages", json=body, headers=headers)
                while len(self._calls(OTHER)) < arrived + len(users):
                    await asyncio.sleep(PAUSE_SECONDS)
                times.append(max(at for at, _ in self._calls(OTHER)) - began)

    def _calls(self, prefix: str) -> list[tuple[float, str]]:
        """When the stub was called for the connections that are so called."""
        lines = [line.partition(" ") for line in self._log.read_text().splitlines()]
        calls = [(float(at), path.rpartition("/")[2]) for at, _, path in lines]
        return [(at, connection) for at, connection in calls if connection.startswith(prefix)]

    async def broadcast(self, count: int, *, kill: bool = False) -> Run:
        """To `count` connections, who must all get it."""
        os.truncate(self._log, 0)
        for process in processes():
            Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak begins anew
        began = time.time()
        answer = await self._http.post("/messages", json=BODY, headers=self._headers)
        answered = time.time() - began
        [message] = answer.json()["messages"]
        if answer.status_code == 202:
            if kill:
                await self._kill_one()
            message = await self._final(message["id"])
        await asyncio.sleep(0.5)  # the stub writes its log
        calls = self._calls("c-")
        reached = len({connection for _, connection in calls})
        if message["delivered"] != count or reached != count:
            raise SystemExit(f"{count - reached} were missed: {message}")
        first, last = min(calls)[0] - began, max(calls)[0] - began
        memory = max(map(peak, processes()))
        return Run(first, last, answered, count / last, len(calls), memory)

    async def _final(self, message_id: str) -> Any:
        while True:
            answer = await self._http.get(f"/messages/{message_id}", headers=self._headers)
            if answer.json()["done"]:
                return answer.json()
            await asyncio.sleep(0.1)

    async def _kill_one(self) -> None:
        """The busiest worker, when so many were reached."""
        before = {process: cpu(process) for process in processes()}
        while len(self._log.read_bytes().splitlines()) < KILL_AFTER:
            await asyncio.sleep(0.05)
        used = {process: cpu(process) - before.get(process, 0) for process in processes()}
        os.kill(max(used, key=lambda process: used[process]), signal.SIGKILL)


def processes() -> list[int]:
    """The execution environments."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"gateway.functions.runtime" in status.read_bytes():
                found.append(int(status.parent.name))
    return found


def peak(process: int) -> float:
    """The most memory that it had, in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu(process: int) -> int:
    """The processor time that it has used, in ticks."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@contextlib.asynccontextmanager
async def place(running_stub: Stub, tables: Tables, **environment: str) -> AsyncIterator[Place]:
    """A gateway over tables of its own."""
    async with serving(tables) as endpoint:
        configured = configuration(
            {
                **SECRET,
                "PORT": "0",
                "AWS_ENDPOINT_URL_DYNAMODB": endpoint,
                "AWS_CA_BUNDLE": str(running_stub.authority),
                "HERALD_MANAGEMENT_ENDPOINT": running_stub.endpoint(LATENCY_MS),
                "HERALD_FANOUT_RATE": "0",
                "HERALD_INLINE_RECIPIENTS": str(INLINE),
                "HERALD_MESSAGE_RATE": "1000",
                "GATEWAY_SCHEDULE_SECONDS": "86400",
                **environment,
            }
        )
        async with gateway(configured) as running:
            tables.emulator = running.aws["AWS_ENDPOINT_URL"]
            yield Place(running, running_stub.log)


async def measure(running_stub: Stub) -> tuple[dict[str, list[Run]], dict[str, Small]]:
    """Runs by title, and small messages by what went on beside them."""
    endpoint = running_stub.endpoint(LATENCY_MS)
    tables = [Tables(endpoint), Tables(endpoint)]
    runs: dict[str, list[Run]] = {}

    def size(count: int, place: Place) -> None:
        for one in tables:
            one.fill(count, (1, shards_for(count)))
        place.say_how_many(count)

    async with (
        place(running_stub, tables[0], HERALD_FANOUT_QUEUE_URL="") as inline,
        place(running_stub, tables[1]) as queued,
    ):
        size(FEW, queued)
        await inline.broadcast(FEW)  # the processes start, and open their connections
        await queued.broadcast(FEW)
        runs[f"POST, {FEW:,}"] = [await inline.broadcast(FEW) for _ in range(ROUNDS)]
        runs[f"queue, {FEW:,}"] = [await queued.broadcast(FEW) for _ in range(ROUNDS)]
        size(COUNT, queued)
        both: tuple[list[Run], list[Run]] = ([], [])
        for _ in range(ROUNDS):
            both[0].append(await inline.broadcast(COUNT))
            both[1].append(await queued.broadcast(COUNT))
        runs[f"POST, {COUNT:,}"], runs[f"queue, {COUNT:,}"] = both
        client("sqs", queued.running.aws).set_queue_attributes(
            QueueUrl=queued.running.aws["HERALD_FANOUT_QUEUE_URL"],
            Attributes={"VisibilityTimeout": str(HIDDEN_SECONDS)},
        )
        await asyncio.sleep(2)  # a call that waits for messages has the old time
        killed = f"queue, {COUNT:,}, a worker killed"
        runs[killed] = [await queued.broadcast(COUNT, kill=True) for _ in range(ROUNDS)]
        queued.let_in_a_few(endpoint)
        small = {"nothing": Small([], []), "a broadcast": Small([], [])}
        for _ in range(ROUNDS):
            for title, times in small.items():
                ended = asyncio.Event()
                sending = asyncio.create_task(queued.send_small(ended, times))
                if title == "nothing":
                    await asyncio.sleep(QUIET_SECONDS)
                else:
                    await queued.broadcast(COUNT)
                ended.set()
                await sending
    return runs, small


def main() -> None:
    with stub(log=True) as running_stub, functions_unheard():
        runs, small = asyncio.run(measure(running_stub))
    print(f"{'broadcast':34} {'per s':>8} {'first s':>8} {'last s':>8} {'calls':>8} {'MB':>6}")
    for title, of in runs.items():
        run = Run(*(statistics.median(values) for values in zip(*of, strict=True)))
        print(
            f"{title:34} {run.per_second:>8,.0f} {run.first:>8.2f} {run.last:>8.2f}"
            f" {run.calls:>8,.0f} {run.megabytes:>6.1f}"
        )
    titles = ("to one", "most", "to 11", "most")
    print(f"\n{'seconds, another tenant, beside':34} " + " ".join(f"{it:>8}" for it in titles))
    for title, times in small.items():
        cells = [cell for one in times for cell in (statistics.median(one), max(one))]
        print(f"{title:34} " + " ".join(f"{cell:>8.2f}" for cell in cells))
    results = {
        "cpus": os.cpu_count(),
        "runs": {title: [run._asdict() for run in of] for title, of in runs.items()},
        "small": {title: times._asdict() for title, times in small.items()},
    }
    keep(RESULT, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
