"""5,000 sockets that are open at once through the local gateway, and messages over them.

    .venv/bin/python -m bench.load
    LOAD_SECONDS=30 .venv/bin/python -m bench.load      # shortens the first part, five minutes

The clients are in a process of their own, and share this machine's cores with the gateway, its
functions and the emulator. There are three parts:

1. steady: a message to 1,000 sockets every second, beside 20 messages per second from one user to
   another. The table has latencies in ms; below it are the processor cores that each kind of
   process kept busy, and its memory as time passes;
2. flat out: messages to the 1,000 as fast as they are answered;
3. storm: all connections break at once, and all clients reconnect.

Each accepted message must arrive at each of its recipients exactly once. The last line counts lost
and duplicate deliveries; the benchmark fails if there is any.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.bound import bounded
from bench.processes import TICKS_PER_SECOND, cpu_ticks
from bench.quick_mode import full_or_quick, write_result
from gateway.aws.emulator import client
from gateway.configuration import configuration
from gateway.server import Running, gateway
from gateway.tokens import token

SOCKETS = full_or_quick(5000, 200)
MEMBERS = full_or_quick(1000, 40)
GROUP = "team"
SECONDS = int(os.environ.get("LOAD_SECONDS", full_or_quick(300, 10)))
SINGLES_PER_SECOND = 20
FLAT_OUT_SECONDS = full_or_quick(20, 2)
FLAT_OUT_AT_ONCE = 4
HANDSHAKES_AT_ONCE = 100
PATIENCE_SECONDS = 300
SETTLE_SECONDS = full_or_quick(30, 1)
TEXT = "x" * 100
SECRET = {"HERALD_JWT_SECRET": "x" * 32}
RESULT = Path(__file__).parent / "results" / "load.json"


# --- The gateway, in its own process


def serve(channel: Connection) -> None:
    """Serve until the other side sends something, and discard what the functions print."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    async def serving() -> None:
        environment = {
            "PORT": "0",
            "HERALD_MESSAGE_RATE": "1000000",
            "HERALD_MESSAGE_BURST": "1000000",
        }
        async with gateway(configuration({**SECRET, **environment})) as running:
            channel.send(running)
            await asyncio.to_thread(channel.poll, None)

    asyncio.run(serving())


def kinds(server: int) -> dict[int, str]:
    """Return the kind of each process that takes part."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(status[1])
            lines[int(folder.name)] = (folder / "cmdline").read_text()
    found = {server: "gateway", os.getpid(): "clients"}
    for process, parent in parents.items():
        if server in (parent, parents.get(parent)):  # environments are children of the fork server
            emulator = "gateway.aws.emulator" in lines.get(process, "")
            found[process] = "emulator" if emulator else "functions"
    return found


def cpu_by_kind(server: int) -> dict[str, float]:
    """Return the seconds of processor time that each kind has used."""
    used: dict[str, float] = defaultdict(float)
    for process, kind in kinds(server).items():
        with contextlib.suppress(OSError):
            used[kind] += cpu_ticks(process) / TICKS_PER_SECOND
    return used


def megabytes_by_kind(server: int) -> dict[str, float]:
    """Return the resident memory of each kind; for the functions, of the largest process."""
    resident: dict[str, float] = {}
    for process, kind in kinds(server).items():
        with contextlib.suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            size = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            resident[kind] = max(resident.get(kind, 0.0), size)
    return resident


# --- The clients


class Clients:
    """All clients, and what each has received."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.sockets: dict[int, ClientConnection] = {}
        self.received: Counter[tuple[str, int]] = Counter()
        """The number of times that each client has received each message."""
        self.due: set[tuple[str, int]] = set()
        """The messages that each client must receive."""
        self.latencies: dict[str, list[float]] = {"broadcast": [], "single": []}
        """Seconds from the request of a message to its arrival at each recipient."""
        self.repeated_answers = 0
        """The number of answers that arrived twice: a busy gateway may send a frame again."""
        self._handshakes = asyncio.Semaphore(HANDSHAKES_AT_ONCE)
        self._readers: dict[int, asyncio.Task[None]] = {}
        self._answers: dict[str, asyncio.Future[Any]] = {}

    async def connect(self, number: int) -> None:
        """Connect a client. The first 1,000 are members of the group."""
        groups = [GROUP] if number < MEMBERS else []
        bearer = token(SECRET, f"user-{number}", groups=groups)
        async with self._handshakes:
            socket = await connect(
                f"{self.running.websocket}?token={bearer}",
                ping_interval=None,
                compression=None,
                open_timeout=PATIENCE_SECONDS,
            )
        self.sockets[number] = socket
        self._readers[number] = asyncio.create_task(self._read(number, socket))

    async def _read(self, number: int, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in socket:
                now = time.perf_counter()
                frame = json.loads(text)
                if frame.get("type") == "messages":
                    for message in frame["messages"]:
                        self.received[message["id"], number] += 1
                        self.latencies[message["type"]].append(now - message["data"]["sent"])
                elif frame.get("ref") in self._answers:
                    self._answers.pop(frame["ref"]).set_result(frame)
                elif "ref" in frame:
                    self.repeated_answers += 1
                else:
                    raise SystemExit(f"An unexpected frame came: {text!r}")

    async def ask(self, number: int, **frame: Any) -> Any:
        """Send a client's frame, and return the answer."""
        ref = f"{number}-{random.random()}"
        self._answers[ref] = asyncio.get_running_loop().create_future()
        answer = self._answers[ref]
        await self.sockets[number].send(json.dumps({**frame, "ref": ref}))
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await answer

    async def send_single(self) -> None:
        """Send a message from one user to another, over their sockets."""
        sender, recipient = random.sample(range(SOCKETS), 2)
        data = {"sent": time.perf_counter(), "text": TEXT}
        to = {"users": [f"user-{recipient}"]}
        ack = await self.ask(sender, action="send", to=to, type="single", data=data)
        if ack.get("delivered") != 1:
            raise SystemExit(f"A message to one user was not delivered: {ack}")
        self.due.add((ack["id"], recipient))

    def drop_all(self) -> None:
        """Break every connection, without a close frame."""
        for reader in self._readers.values():
            reader.cancel()
        for socket in self.sockets.values():
            socket.transport.abort()
        self.sockets.clear()
        self._readers.clear()

    async def settle(self) -> None:
        """Wait until every due message has arrived, or SETTLE_SECONDS have passed."""
        end = time.monotonic() + SETTLE_SECONDS
        while self.lost and time.monotonic() < end:
            await asyncio.sleep(0.2)

    @property
    def lost(self) -> int:
        """The number of due deliveries that have not arrived."""
        return len(self.due - self.received.keys())

    @property
    def duplicates(self) -> int:
        """The number of deliveries that arrived again."""
        return sum(count - 1 for count in self.received.values())


class Broadcasts:
    """Posts messages to the group."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._http = httpx.AsyncClient(base_url=clients.running.http, timeout=PATIENCE_SECONDS)
        self._headers = {"Authorization": f"Bearer {token(SECRET, 'server')}"}
        self.answered: list[float] = []

    async def post(self) -> None:
        """Post a message. Raises SystemExit unless it was delivered to all members."""
        sent = time.perf_counter()
        data = {"sent": sent, "text": TEXT}
        body = {"to": {"groups": [GROUP]}, "type": "broadcast", "data": data}
        answer = await self._http.post("/messages", json=body, headers=self._headers)
        answer.raise_for_status()
        [report] = answer.json()["messages"]
        if report.get("delivered") != MEMBERS:
            raise SystemExit(f"A message did not reach all members: {report}")
        self.answered.append(time.perf_counter() - sent)
        self._clients.due |= {(report["id"], number) for number in range(MEMBERS)}


# --- What is measured


async def measure_steady(clients: Clients, server: int) -> dict[str, Any]:
    """Measure messages at a steady rate, for SECONDS."""
    broadcasts = Broadcasts(clients)
    memory = [megabytes_by_kind(server)]
    used, began = cpu_by_kind(server), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for tick in range(SECONDS * SINGLES_PER_SECOND):
            await asyncio.sleep(began + tick / SINGLES_PER_SECOND - time.perf_counter())
            tasks.create_task(clients.send_single())
            if tick % SINGLES_PER_SECOND == 0:
                tasks.create_task(broadcasts.post())
            if tick and tick % (SECONDS * SINGLES_PER_SECOND // 5) == 0:
                memory.append(megabytes_by_kind(server))
    seconds = time.perf_counter() - began
    await clients.settle()
    return {
        "seconds": seconds,
        "broadcasts": len(broadcasts.answered),
        "answered": quantiles(broadcasts.answered),
        **{kind: quantiles(latencies) for kind, latencies in clients.latencies.items()},
        "cpu": cores(server, used, seconds),
        "memory": [*memory, megabytes_by_kind(server)],
    }


async def measure_flat_out(clients: Clients, server: int) -> dict[str, Any]:
    """Measure messages to the group, FLAT_OUT_AT_ONCE at a time, as fast as they are answered."""
    broadcasts = Broadcasts(clients)
    used, began = cpu_by_kind(server), time.perf_counter()

    async def keep_posting() -> None:
        while time.perf_counter() < began + FLAT_OUT_SECONDS:
            await broadcasts.post()

    await asyncio.gather(*(keep_posting() for _ in range(FLAT_OUT_AT_ONCE)))
    seconds = time.perf_counter() - began
    await clients.settle()
    return {
        "deliveriesPerSecond": len(broadcasts.answered) * MEMBERS / seconds,
        "cpu": cores(server, used, seconds),
    }


async def measure_storm(clients: Clients) -> dict[str, Any]:
    """Break all connections, and measure how long it takes until all clients are back.

    Raises SystemExit unless a function answers each, and the table has exactly these connections.
    """
    clients.drop_all()
    began = time.perf_counter()
    clients._handshakes = asyncio.Semaphore(SOCKETS)
    await asyncio.gather(*map(clients.connect, range(SOCKETS)))
    connected = time.perf_counter() - began
    leave = {"action": "leave", "group": "none"}
    answers = await asyncio.gather(*(clients.ask(one, **leave) for one in range(SOCKETS)))
    answered = time.perf_counter() - began
    if any(answer["type"] != "left" for answer in answers):
        raise SystemExit("A client got no answer")
    dynamodb = client("dynamodb", clients.running.aws)
    while (stored := count_connections(dynamodb)) != SOCKETS:
        if time.perf_counter() > began + PATIENCE_SECONDS:
            raise SystemExit(f"{stored} connections are stored, instead of {SOCKETS}")
        await asyncio.sleep(1)
    stored_at = time.perf_counter() - began
    await Broadcasts(clients).post()
    await clients.settle()
    return {"connected": connected, "answered": answered, "stored": stored_at}


def count_connections(dynamodb: Any) -> int:
    """Return how many connections the table has."""
    pages = dynamodb.get_paginator("scan").paginate(
        TableName="herald-connections", Select="COUNT", ConsistentRead=True
    )
    return sum(page["Count"] for page in pages)


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return percentiles, in ms."""
    percentiles = statistics.quantiles(seconds, n=1000)
    found = {"p50": percentiles[499], "p90": percentiles[899], "p99": percentiles[989]}
    return {name: value * 1000 for name, value in {**found, "max": max(seconds)}.items()}


def cores(server: int, before: dict[str, float], seconds: float) -> dict[str, float]:
    """Return how many cores each kind of process has kept busy since `before`."""
    return {kind: (used - before[kind]) / seconds for kind, used in cpu_by_kind(server).items()}


async def measure(running: Running, server: int) -> dict[str, Any]:
    """Connect all clients, measure the three parts, and print each."""
    clients = Clients(running)
    began = time.perf_counter()
    await asyncio.gather(*map(clients.connect, range(SOCKETS)))
    connected = time.perf_counter() - began
    print(f"{SOCKETS:,} sockets, opened in {connected:.0f} s", flush=True)
    results: dict[str, Any] = {"cpus": os.cpu_count(), "connected": connected}
    results["held"] = await measure_steady(clients, server)
    print_steady(results["held"])
    results["flatOut"] = await measure_flat_out(clients, server)
    print_flat_out(results["flatOut"])
    results["storm"] = await measure_storm(clients)
    print_storm(results["storm"])
    results |= {
        "memory": megabytes_by_kind(server),
        "due": len(clients.due),
        "lost": clients.lost,
        "doubles": clients.duplicates,
        "repeatedAnswers": clients.repeated_answers,
    }
    clients.drop_all()
    return results


def print_steady(held: dict[str, Any]) -> None:
    print(
        f"steady, {held['seconds']:.0f} s: a message to {MEMBERS:,} every second,"
        f" and {SINGLES_PER_SECOND} per second from one to another"
    )
    print(f"{'ms':30}" + "".join(f"{name:>9}" for name in ("p50", "p90", "p99", "max")))
    for title, key in (
        (f"to each of {MEMBERS:,}", "broadcast"),
        ("POST answered", "answered"),
        ("to one", "single"),
    ):
        print(f"  {title:28}" + "".join(f"{value:>9,.0f}" for value in held[key].values()))
    print(f"  cores: {_listed(held['cpu'], '.2f')}")
    for minute, memory in enumerate(held["memory"]):
        print(f"  MB after {minute}/5: {_listed(memory, '.0f')}", flush=True)


def print_flat_out(flat_out: dict[str, Any]) -> None:
    print(f"flat out: {flat_out['deliveriesPerSecond']:,.0f} deliveries per second")
    print(f"  cores: {_listed(flat_out['cpu'], '.2f')}", flush=True)


def print_storm(storm: dict[str, Any]) -> None:
    print(
        f"storm: all reconnected after {storm['connected']:.0f} s, answered after"
        f" {storm['answered']:.0f} s; only these in the table after {storm['stored']:.0f} s",
        flush=True,
    )


def _listed(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in sorted(values.items()))


@bounded(minutes=40)
def main() -> None:
    """Print and write the figures. Raises SystemExit if a delivery was lost or duplicate."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    process.start()
    theirs.close()
    try:
        results = asyncio.run(measure(ours.recv(), process.pid or 0))
    finally:
        ours.send(None)
        process.join(PATIENCE_SECONDS)
        process.kill()  # if it has not ended yet
    write_result(RESULT, json.dumps(results, indent=1) + "\n")
    print(f"MB at the end: {_listed(results['memory'], '.0f')}")
    print(
        f"{results['due']:,} deliveries: {results['lost']} lost, {results['doubles']} duplicate;"
        f" {results['repeatedAnswers']} duplicate answers"
    )
    if results["lost"] or results["doubles"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
