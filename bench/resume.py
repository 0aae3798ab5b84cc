"""A reconnect storm: 2,000 clients reconnect, and each resumes 100 messages that it missed.

    .venv/bin/python -m bench.resume

The clients are real WebSocket clients of the local gateway, and share this machine's cores with it
and with the emulated DynamoDB. While nobody is connected, messages are sent to everybody, to a
group, and to each user. Then all clients connect and resume, 200 at a time. The benchmark fails
unless each gets its 100 messages in order.

A row has the time until all were answered, the rate, the latency, and the functions' processor time
per client. The pings, sent in the same way, are the comparison: frames that read nothing.
"""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from websockets.asyncio.client import ClientConnection, connect

from bench.bound import bounded
from bench.processes import TICKS_PER_SECOND, cpu_ticks, execution_environments
from bench.quick_mode import full_or_quick, write_result
from bench.quiet import stdout_discarded
from chalicelib.clock import now_ms
from chalicelib.protocol.ulid import earliest
from gateway.aws.emulator import client
from gateway.configuration import configuration
from gateway.server import Running, gateway
from gateway.tokens import token

CLIENTS = full_or_quick(2000, 200)
TO_ALL, TO_GROUP, TO_EACH = 60, 38, 2
MESSAGES = TO_ALL + TO_GROUP + TO_EACH
AT_ONCE = 200
USERS_PER_POST = 100
GROUP = "team"
SECRET = {"HERALD_JWT_SECRET": "x" * 32}
TEXT = "x" * 100
TICK_MS = 1000 / TICKS_PER_SECOND
RESULT = Path(__file__).parent / "results" / "resume.json"


class Storm(NamedTuple):
    """The figures of a storm: `seconds` until the last answer, latencies in ms, and `cpu`, the
    functions' processor time per client in ms."""

    seconds: float
    per_second: float
    median: float
    p99: float
    cpu: float


async def send(running: Running, users: list[str]) -> None:
    """Send a hundred messages to each user."""
    headers = {"Authorization": f"Bearer {token(SECRET, 'bench')}"}
    chunks = [users[at : at + USERS_PER_POST] for at in range(0, len(users), USERS_PER_POST)]
    audiences = [
        *[{"all": True}] * TO_ALL,
        *[{"groups": [GROUP]}] * TO_GROUP,
        *[{"users": chunk} for chunk in chunks for _ in range(TO_EACH)],
    ]
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as http:
        for to in audiences:
            answer = await http.post("/messages", json={"to": to, "data": TEXT}, headers=headers)
            answer.raise_for_status()


async def storm(
    sockets: list[ClientConnection], ask: Callable[[ClientConnection], Awaitable[None]]
) -> Storm:
    """Have all clients ask, AT_ONCE at a time, and measure that."""
    turns = asyncio.Semaphore(AT_ONCE)
    times: list[float] = []

    async def one(socket: ClientConnection) -> None:
        async with turns:
            began = time.perf_counter()
            await ask(socket)
            times.append((time.perf_counter() - began) * 1000)

    before = {process: cpu_ticks(process) for process in execution_environments()}
    began = time.perf_counter()
    await asyncio.gather(*map(one, sockets))
    seconds = time.perf_counter() - began
    used = sum(cpu_ticks(process) - before.get(process, 0) for process in execution_environments())
    return Storm(
        seconds,
        len(sockets) / seconds,
        statistics.median(times),
        statistics.quantiles(times, n=100)[-1],
        used * TICK_MS / len(sockets),
    )


async def ping(socket: ClientConnection) -> None:
    """Send a ping. Raises SystemExit unless a pong comes."""
    await socket.send('{"action": "ping"}')
    answer = json.loads(await socket.recv())
    if answer["type"] != "pong":
        raise SystemExit(f"No pong came, but {answer}")


async def resume(socket: ClientConnection, after: str) -> None:
    """Resume. Raises SystemExit unless all messages come, in order."""
    await socket.send(json.dumps({"action": "resume", "after": after}))
    ids: list[str] = []
    while (answer := json.loads(await socket.recv()))["type"] == "messages":
        ids += [message["id"] for message in answer["messages"]]
    if len(ids) != MESSAGES or ids != sorted(ids) or not answer.get("complete"):
        raise SystemExit(f"{len(ids)} of {MESSAGES} messages came, or in the wrong order: {answer}")


async def disconnect(running: Running, sockets: list[ClientConnection]) -> None:
    """Close all sockets, and wait until Herald has removed their connections."""
    for socket in sockets:
        await socket.close()
    dynamodb = client("dynamodb", running.aws)
    while dynamodb.scan(TableName="herald-connections", Select="COUNT", Limit=1)["Count"]:
        await asyncio.sleep(1)


async def measure() -> dict[str, Any]:
    """Run the storm, and return its figures."""
    users = [f"user-{number}" for number in range(CLIENTS)]
    environment = {
        "HERALD_MESSAGE_RATE": "1000000",
        "HERALD_MESSAGE_BURST": "1000000",
        "GATEWAY_SCHEDULE_SECONDS": "86400",
        "GATEWAY_MOCK_ROUTES": "false",  # a function answers the pings, as it answers resumes
    }
    async with gateway(configuration({**SECRET, **environment, "PORT": "0"})) as running:

        async def open_socket(user: str) -> ClientConnection:
            bearer = token(SECRET, user, groups=[GROUP])
            async with turns:
                return await connect(
                    f"{running.websocket}?token={bearer}", ping_interval=None, open_timeout=60
                )

        turns = asyncio.Semaphore(AT_ONCE)
        # A first connection makes each user a member of the group before the messages are sent.
        await disconnect(running, await asyncio.gather(*map(open_socket, users)))
        after = earliest(now_ms())
        await send(running, users)
        began = time.perf_counter()
        sockets = await asyncio.gather(*map(open_socket, users))
        connected = time.perf_counter() - began
        pings = await storm(sockets, ping)
        resumes = await storm(sockets, lambda socket: resume(socket, after))
        await disconnect(running, sockets)
    return {
        "cpus": os.cpu_count(),
        "connected": connected,
        "pings": pings._asdict(),
        "resumes": resumes._asdict(),
    }


@bounded(minutes=20)
def main() -> None:
    """Print the figures as a table, and write them."""
    with stdout_discarded():
        results = asyncio.run(measure())
    print(
        f"{CLIENTS:,} clients connected in {results['connected']:.1f} s; then, {AT_ONCE} at a time:"
    )
    titles = ("in s", "per s", "median ms", "p99 ms", "CPU ms each")
    print(f"{'':28}" + "".join(f"{title:>13}" for title in titles))
    for title, kind in (("a ping each", "pings"), (f"{MESSAGES} messages resumed each", "resumes")):
        print(f"{title:28}" + "".join(f"{value:>13,.1f}" for value in results[kind].values()))
    write_result(RESULT, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
