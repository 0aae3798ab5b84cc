"""5,000 sockets held at once through the local gateway, and what passes over them.

Real WebSockets, from a process of its own. A message to 1,000 of them every second for five
minutes, beside 20 a second from one user to another; then as many as go; then all connections
break at once, and everybody comes back. Each message that was accepted must come to each of its
recipients once: what is missing or comes twice is counted, and ends this with a failure.

`LOAD_SECONDS=30` makes the five minutes shorter.
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

from bench.queued import cpu
from bench.quick_mode import extent, keep
from gateway.aws.emulator import client
from gateway.configuration import configuration
from gateway.server import Running, gateway
from gateway.tokens import token

SOCKETS = extent(5000, 200)
MEMBERS = extent(1000, 40)
GROUP = "team"
SECONDS = int(os.environ.get("LOAD_SECONDS", extent(300, 10)))
SINGLES_A_SECOND = 20
FLAT_OUT_SECONDS = extent(20, 2)
FLAT_OUT_AT_ONCE = 4
HANDSHAKES_AT_ONCE = 100
PATIENCE_SECONDS = 300
SETTLE_SECONDS = extent(30, 1)
TEXT = "x" * 100
SECRET = {"HERALD_JWT_SECRET": "x" * 32}
TICKS = os.sysconf("SC_CLK_TCK")
RESULT = Path(__file__).parent / "results" / "load.json"


# --- The gateway, in a process of its own


def serve(channel: Connection) -> None:
    """Serve until the other side hangs up. What the functions print goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    async def serving() -> None:
        environment = {"PORT": "0", "HERALD_MESSAGE_RATE": "1000", "HERALD_MESSAGE_BURST": "1000"}
        async with gateway(configuration({**SECRET, **environment})) as running:
            channel.send(running)
            await asyncio.to_thread(channel.poll, None)

    asyncio.run(serving())


def kinds(server: int) -> dict[int, str]:
    """The processes at work, and what each is."""
    found = {server: "gateway", os.getpid(): "clients"}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_text()
            if int(status[1]) == server:
                found[int(folder.name)] = (
                    "emulator" if "gateway.aws.emulator" in line else "functions"
                )
    return found


def cpu_by_kind(server: int) -> dict[str, float]:
    """Seconds of CPU until now."""
    used: dict[str, float] = defaultdict(float)
    for process, kind in kinds(server).items():
        with contextlib.suppress(OSError):
            used[kind] += cpu(process) / TICKS
    return used


def megabytes_by_kind(server: int) -> dict[str, float]:
    """What each kind of process has in memory; of the functions, the largest one."""
    resident: dict[str, float] = {}
    for process, kind in kinds(server).items():
        with contextlib.suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            size = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            resident[kind] = max(resident.get(kind, 0.0), size)
    return resident


# --- The clients


class Crowd:
    """All clients, and what each has received."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.sockets: dict[int, ClientConnection] = {}
        self.received: Counter[tuple[str, int]] = Counter()
        """How often a message came to a client."""
        self.due: set[tuple[str, int]] = set()
        self.latencies: dict[str, list[float]] = {"broadcast": [], "single": []}
        """Seconds from before a message was posted until each recipient had it."""
        self.repeated_answers = 0
        self._handshakes = asyncio.Semaphore(HANDSHAKES_AT_ONCE)
        self._readers: dict[int, asyncio.Task[None]] = {}
        self._answers: dict[str, asyncio.Future[Any]] = {}

    async def come(self, number: int) -> None:
        """Connect a client. The first 1,000 are in the group."""
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
                elif "ref" in frame:  # sent again, since the gateway was too busy to confirm it
                    self.repeated_answers += 1
                else:
                    raise SystemExit(f"nobody asked for {text!r}")

    async def ask(self, number: int, **frame: Any) -> Any:
        """A client's frame, and its answer."""
        ref = f"{number}-{random.random()}"
        self._answers[ref] = asyncio.get_running_loop().create_future()
        answer = self._answers[ref]
        await self.sockets[number].send(json.dumps({**frame, "ref": ref}))
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await answer

    async def send_single(self) -> None:
        """From one user to another, over their sockets."""
        sender, recipient = random.sample(range(SOCKETS), 2)
        data = {"sent": time.perf_counter(), "text": TEXT}
        to = {"users": [f"user-{recipient}"]}
        ack = await self.ask(sender, action="send", to=to, type="single", data=data)
        if ack.get("delivered") != 1:
            raise SystemExit(f"a single message was not delivered: {ack}")
        self.due.add((ack["id"], recipient))

    def drop_all(self) -> None:
        """Break every connection, without a word."""
        for reader in self._readers.values():
            reader.cancel()
        for socket in self.sockets.values():
            socket.transport.abort()
        self.sockets.clear()
        self._readers.clear()

    async def settle(self) -> None:
        """Wait until all has come that is due."""
        end = time.monotonic() + SETTLE_SECONDS
        while self.lost and time.monotonic() < end:
            await asyncio.sleep(0.2)

    @property
    def lost(self) -> int:
        return len(self.due - self.received.keys())

    @property
    def doubles(self) -> int:
        return sum(count - 1 for count in self.received.values())


class Broadcasts:
    """Posts messages to the group."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._http = httpx.AsyncClient(base_url=crowd.running.http, timeout=PATIENCE_SECONDS)
        self._headers = {"Authorization": f"Bearer {token(SECRET, 'server')}"}
        self.answered: list[float] = []

    async def post(self) -> None:
        """One message, which must be delivered to all members at once."""
        sent = time.perf_counter()
        data = {"sent": sent, "text": TEXT}
        body = {"to": {"groups": [GROUP]}, "type": "broadcast", "data": data}
        answer = await self._http.post("/messages", json=body, headers=self._headers)
        answer.raise_for_status()
        [report] = answer.json()["messages"]
        if report.get("delivered") != MEMBERS:
            raise SystemExit(f"a message did not reach all: {report}")
        self.answered.append(time.perf_counter() - sent)
        self._crowd.due |= {(report["id"], number) for number in range(MEMBERS)}


# --- What is measured


async def held(crowd: Crowd, server: int) -> dict[str, Any]:
    """The five minutes."""
    broadcasts = Broadcasts(crowd)
    memory = [megabytes_by_kind(server)]
    used, began = cpu_by_kind(server), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for tick in range(SECONDS * SINGLES_A_SECOND):
            await asyncio.sleep(began + tick / SINGLES_A_SECOND - time.perf_counter())
            tasks.create_task(crowd.send_single())
            if tick % SINGLES_A_SECOND == 0:
                tasks.create_task(broadcasts.post())
            if tick and tick % (SECONDS * SINGLES_A_SECOND // 5) == 0:
                memory.append(megabytes_by_kind(server))
    seconds = time.perf_counter() - began
    await crowd.settle()
    return {
        "seconds": seconds,
        "broadcasts": len(broadcasts.answered),
        "answered": quantiles(broadcasts.answered),
        **{kind: quantiles(latencies) for kind, latencies in crowd.latencies.items()},
        "cpu": cores(server, used, seconds),
        "memory": [*memory, megabytes_by_kind(server)],
    }


async def flat_out(crowd: Crowd, server: int) -> dict[str, Any]:
    """Messages to the group, some at a time, as fast as they are answered."""
    broadcasts = Broadcasts(crowd)
    used, began = cpu_by_kind(server), time.perf_counter()

    async def keep_posting() -> None:
        while time.perf_counter() < began + FLAT_OUT_SECONDS:
            await broadcasts.post()

    await asyncio.gather(*(keep_posting() for _ in range(FLAT_OUT_AT_ONCE)))
    seconds = time.perf_counter() - began
    await crowd.settle()
    return {
        "deliveriesPerSecond": len(broadcasts.answered) * MEMBERS / seconds,
        "cpu": cores(server, used, seconds),
    }


async def storm(crowd: Crowd) -> dict[str, Any]:
    """All break, and come back at once; each must get an answer, and a message to all members."""
    crowd.drop_all()
    began = time.perf_counter()
    crowd._handshakes = asyncio.Semaphore(SOCKETS)
    await asyncio.gather(*map(crowd.come, range(SOCKETS)))
    connected = time.perf_counter() - began
    pongs = await asyncio.gather(*(crowd.ask(one, action="ping") for one in range(SOCKETS)))
    answered = time.perf_counter() - began
    if any(pong["type"] != "pong" for pong in pongs):
        raise SystemExit("somebody got no pong")
    dynamodb = client("dynamodb", crowd.running.aws)
    while (stored := count(dynamodb)) != SOCKETS:
        if time.perf_counter() > began + PATIENCE_SECONDS:
            raise SystemExit(f"{stored} connections are stored, of {SOCKETS}")
        await asyncio.sleep(1)
    stored_at = time.perf_counter() - began
    await Broadcasts(crowd).post()
    await crowd.settle()
    return {"connected": connected, "answered": answered, "stored": stored_at}


def count(dynamodb: Any) -> int:
    """How many connections the table has."""
    pages = dynamodb.get_paginator("scan").paginate(
        TableName="herald-connections", Select="COUNT", ConsistentRead=True
    )
    return sum(page["Count"] for page in pages)


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In ms."""
    percentiles = statistics.quantiles(seconds, n=1000)
    found = {"p50": percentiles[499], "p90": percentiles[899], "p99": percentiles[989]}
    return {name: value * 1000 for name, value in {**found, "max": max(seconds)}.items()}


def cores(server: int, before: dict[str, float], seconds: float) -> dict[str, float]:
    """How many each kind of process kept busy since `before`."""
    return {kind: (used - before[kind]) / seconds for kind, used in cpu_by_kind(server).items()}


async def measure(running: Running, server: int) -> dict[str, Any]:
    crowd = Crowd(running)
    began = time.perf_counter()
    await asyncio.gather(*map(crowd.come, range(SOCKETS)))
    connected = time.perf_counter() - began
    print(f"{SOCKETS:,} sockets, open in {connected:.0f} s", flush=True)
    results: dict[str, Any] = {"cpus": os.cpu_count(), "connected": connected}
    results["held"] = await held(crowd, server)
    show_held(results["held"])
    results["flatOut"] = await flat_out(crowd, server)
    show_flat_out(results["flatOut"])
    results["storm"] = await storm(crowd)
    show_storm(results["storm"])
    results |= {
        "memory": megabytes_by_kind(server),
        "due": len(crowd.due),
        "lost": crowd.lost,
        "doubles": crowd.doubles,
        "repeatedAnswers": crowd.repeated_answers,
    }
    crowd.drop_all()
    return results


def show_held(held: dict[str, Any]) -> None:
    print(
        f"{held['seconds']:.0f} s: a message to {MEMBERS:,} every second,"
        f" and {SINGLES_A_SECOND} a second from one to another"
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


def show_flat_out(flat_out: dict[str, Any]) -> None:
    print(f"flat out: {flat_out['deliveriesPerSecond']:,.0f} deliveries a second")
    print(f"  cores: {_listed(flat_out['cpu'], '.2f')}", flush=True)


def show_storm(storm: dict[str, Any]) -> None:
    print(
        f"storm: all back in {storm['connected']:.0f} s, all answered in {storm['answered']:.0f} s,"
        f" nobody of before in the table after {storm['stored']:.0f} s",
        flush=True,
    )


def _listed(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in sorted(values.items()))


def main() -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    process.start()
    theirs.close()
    try:
        results = asyncio.run(measure(ours.recv(), process.pid or 0))
    finally:
        ours.send(None)
        process.join()
    keep(RESULT, json.dumps(results, indent=1) + "\n")
    print(f"MB at the end: {_listed(results['memory'], '.0f')}")
    print(
        f"{results['due']:,} deliveries: {results['lost']} lost, {results['doubles']} twice;"
        f" {results['repeatedAnswers']} answers twice"
    )
    if results["lost"] or results["doubles"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
