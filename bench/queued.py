"""Broadcasts through the queue, beside broadcasts that POST delivers itself.

    .venv/bin/python -m bench.queued

Everything runs on this machine's cores: the local gateway, its workers and queue, and the stub.
The rows of the first table are broadcasts to 10,000 and to 100,000 connections, delivered by POST
and by the queue (the two took turns), and one in whose middle a worker is killed. Times are seconds
since the request; `calls` are those that the stub has logged, `MB` the largest process. The
benchmark fails if any connection was missed.

The second table has the latency of another tenant's small messages, while nothing else happens and
beside broadcasts: to one connection, which POST delivers, and to eleven, through the queue.
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

from bench.processes import cpu_ticks, execution_environments, peak_megabytes, reset_peak
from bench.quick_mode import full_or_quick, write_result
from bench.quiet import stdout_discarded
from bench.stub import Stub, stub
from bench.tables import Tables, serving
from chalicelib.auth.principal import Principal
from chalicelib.clock import now_ms
from chalicelib.store.items import Connection
from gateway.aws.emulator import client
from gateway.configuration import configuration
from gateway.server import Running, gateway
from gateway.tokens import token

COUNT = full_or_quick(100_000, 4000)
FEW = full_or_quick(10_000, 1000)
ROUNDS = full_or_quick(3, 1)
LATENCY_MS = 10
QUIET_SECONDS = 4.0
KILL_AFTER = full_or_quick(30_000, 1000)  # deliveries
HIDDEN_SECONDS = 5  # until a dead worker's job comes again; a deployed queue takes 60
OTHER_TENANT = "other"
RESULT = Path(__file__).parent / "results" / "queued.json"
SECRET = {"HERALD_JWT_SECRET": "x" * 32}
INLINE = 10
FEW_USERS = [f"user-{number}" for number in range(INLINE + 1)]
PAUSE_SECONDS = 0.1
BODY = {"to": {"all": True}, "data": "x" * 100}


class Run(NamedTuple):
    """One broadcast. Times are seconds since the request; `megabytes` is the largest process."""

    first: float
    last: float
    answered: float
    per_second: float
    calls: int
    megabytes: float


class SmallMessages(NamedTuple):
    """Seconds from the request of a small message to its last recipient."""

    to_one: list[float]
    to_eleven: list[float]


class StubbedGateway:
    """A running gateway whose connections are all at the stub."""

    def __init__(self, running: Running, log: Path) -> None:
        self.running = running
        self._log = log
        self._http = httpx.AsyncClient(base_url=running.http, timeout=60)
        self._headers = {
            "Authorization": f"Bearer {token(SECRET, 'bench')}",
            "Content-Type": "application/json",
        }

    def set_audience_size(self, count: int) -> None:
        """Store the number of connections, as the last sweep would have counted them."""
        dynamodb = client("dynamodb", self.running.aws)
        for shard in range(4):
            item = {
                "user": {"S": f"sweep-connections-{shard}"},
                "active": {"N": str(count // 4)},
            }
            dynamodb.put_item(TableName="herald-users", Item=item)

    def add_other_tenant(self, endpoint: str) -> None:
        """Store users of another tenant, each with one connection."""
        dynamodb = client("dynamodb", self.running.aws)
        for user in FEW_USERS:
            principal = Principal(user, int(time.time()) + 7200, tenant=OTHER_TENANT)
            now = now_ms()
            connection = Connection(
                f"{OTHER_TENANT}-{user}", principal, endpoint, connected_at=now, timestamp=now
            )
            item = {
                "user": {"S": principal.key},
                "connections": {"SS": [connection.connection_id]},
                f"@{connection.connection_id}": connection.recipient.reach(),
            }
            dynamodb.put_item(TableName="herald-users", Item=item)

    async def send_small_messages(self, until: asyncio.Event, small: SmallMessages) -> None:
        """Send small messages, one after the other, until an event is set; record their times."""
        headers = {
            **self._headers,
            "Authorization": f"Bearer {token(SECRET, 'b', tenant=OTHER_TENANT)}",
        }
        while not until.is_set():
            for users, times in ((FEW_USERS[:1], small.to_one), (FEW_USERS, small.to_eleven)):
                arrived = len(self._calls(OTHER_TENANT))
                began = time.time()
                body = {"to": {"users": users}, "data": 1}
                await self._http.post("/messages", json=body, headers=headers)
                while len(self._calls(OTHER_TENANT)) < arrived + len(users):
                    await asyncio.sleep(PAUSE_SECONDS)
                times.append(max(at for at, _ in self._calls(OTHER_TENANT)) - began)

    def _calls(self, prefix: str) -> list[tuple[float, str]]:
        """Return the time and the connection of each call, for ids that begin with `prefix`."""
        lines = [line.partition(" ") for line in self._log.read_text().splitlines()]
        calls = [(float(at), path.rpartition("/")[2]) for at, _, path in lines]
        return [(at, connection) for at, connection in calls if connection.startswith(prefix)]

    async def broadcast(self, count: int, *, kill: bool = False) -> Run:
        """Broadcast to all `count` connections. Raises SystemExit if any was missed."""
        os.truncate(self._log, 0)
        for process in execution_environments():
            reset_peak(process)
        began = time.time()
        answer = await self._http.post("/messages", json=BODY, headers=self._headers)
        answered = time.time() - began
        [message] = answer.json()["messages"]
        if answer.status_code == 202:
            if kill:
                await self._kill_one()
            message = await self._final_report(message["id"])
        await asyncio.sleep(0.5)  # until the stub has written its log
        calls = self._calls("c-")
        reached = len({connection for _, connection in calls})
        if message["delivered"] != count or reached != count:
            raise SystemExit(f"{count - reached} connections were missed: {message}")
        first, last = min(calls)[0] - began, max(calls)[0] - began
        memory = max(map(peak_megabytes, execution_environments()))
        return Run(first, last, answered, count / last, len(calls), memory)

    async def _final_report(self, message_id: str) -> Any:
        while True:
            answer = await self._http.get(f"/messages/{message_id}", headers=self._headers)
            if answer.json()["done"]:
                return answer.json()
            await asyncio.sleep(0.1)

    async def _kill_one(self) -> None:
        """Kill the busiest worker once KILL_AFTER connections were reached."""
        before = {process: cpu_ticks(process) for process in execution_environments()}
        while len(self._log.read_bytes().splitlines()) < KILL_AFTER:
            await asyncio.sleep(0.05)
        used = {
            process: cpu_ticks(process) - before.get(process, 0)
            for process in execution_environments()
        }
        os.kill(max(used, key=lambda process: used[process]), signal.SIGKILL)


@contextlib.asynccontextmanager
async def stubbed_gateway(
    running_stub: Stub, tables: Tables, **environment: str
) -> AsyncIterator[StubbedGateway]:
    """Run a gateway that reads these tables, while the context lasts."""
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
                "HERALD_MESSAGE_RATE": "1000000",
                "HERALD_MESSAGE_BURST": "1000000",
                "GATEWAY_SCHEDULE_SECONDS": "86400",
                **environment,
            }
        )
        async with gateway(configured) as running:
            tables.emulator = running.aws["AWS_ENDPOINT_URL"]
            yield StubbedGateway(running, running_stub.log)


async def measure(running_stub: Stub) -> tuple[dict[str, list[Run]], dict[str, SmallMessages]]:
    """Return the broadcasts by title, and the small messages by what happened beside them."""
    endpoint = running_stub.endpoint(LATENCY_MS)
    tables = [Tables(endpoint), Tables(endpoint)]
    runs: dict[str, list[Run]] = {}

    def resize(count: int, queued: StubbedGateway) -> None:
        for one in tables:
            one.fill(count)
        queued.set_audience_size(count)

    async with (
        stubbed_gateway(running_stub, tables[0], HERALD_FANOUT_QUEUE_URL="") as inline,
        stubbed_gateway(running_stub, tables[1]) as queued,
    ):
        resize(FEW, queued)
        await inline.broadcast(FEW)  # not counted: processes start, and open their connections
        await queued.broadcast(FEW)
        runs[f"POST, {FEW:,}"] = [await inline.broadcast(FEW) for _ in range(ROUNDS)]
        runs[f"queue, {FEW:,}"] = [await queued.broadcast(FEW) for _ in range(ROUNDS)]
        resize(COUNT, queued)
        both: tuple[list[Run], list[Run]] = ([], [])
        for _ in range(ROUNDS):
            both[0].append(await inline.broadcast(COUNT))
            both[1].append(await queued.broadcast(COUNT))
        runs[f"POST, {COUNT:,}"], runs[f"queue, {COUNT:,}"] = both
        client("sqs", queued.running.aws).set_queue_attributes(
            QueueUrl=queued.running.aws["HERALD_FANOUT_QUEUE_URL"],
            Attributes={"VisibilityTimeout": str(HIDDEN_SECONDS)},
        )
        await asyncio.sleep(2)  # a receive call that waits already has the old time-out
        killed = f"queue, {COUNT:,}, a worker killed"
        runs[killed] = [await queued.broadcast(COUNT, kill=True) for _ in range(ROUNDS)]
        queued.add_other_tenant(endpoint)
        small = {"nothing": SmallMessages([], []), "a broadcast": SmallMessages([], [])}
        for _ in range(ROUNDS):
            for title, times in small.items():
                ended = asyncio.Event()
                sending = asyncio.create_task(queued.send_small_messages(ended, times))
                if title == "nothing":
                    await asyncio.sleep(QUIET_SECONDS)
                else:
                    await queued.broadcast(COUNT)
                ended.set()
                await sending
    return runs, small


def main() -> None:
    with stub(log=True) as running_stub, stdout_discarded():
        runs, small = asyncio.run(measure(running_stub))
    print(f"{'broadcast':34} {'per s':>8} {'first s':>8} {'last s':>8} {'calls':>8} {'MB':>6}")
    for title, of in runs.items():
        run = Run(*(statistics.median(values) for values in zip(*of, strict=True)))
        print(
            f"{title:34} {run.per_second:>8,.0f} {run.first:>8.2f} {run.last:>8.2f}"
            f" {run.calls:>8,.0f} {run.megabytes:>6.1f}"
        )
    titles = ("to one", "most", "to 11", "most")
    print(f"\n{'other tenant, seconds, beside':34} " + " ".join(f"{it:>8}" for it in titles))
    for title, times in small.items():
        cells = [cell for one in times for cell in (statistics.median(one), max(one))]
        print(f"{title:34} " + " ".join(f"{cell:>8.2f}" for cell in cells))
    results = {
        "cpus": os.cpu_count(),
        "runs": {title: [run._asdict() for run in of] for title, of in runs.items()},
        "small": {title: times._asdict() for title, times in small.items()},
    }
    write_result(RESULT, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
