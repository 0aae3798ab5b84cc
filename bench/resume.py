"""A storm: 2,000 clients come back after a deployment, and each resumes 100 messages.

Real WebSockets through the local gateway, on all cores, with the emulator's DynamoDB. The messages
are sent while nobody is there: to everybody, to a group, and to each user. Then all connect, and
ask, two hundred at a time; each must get the hundred, in order. Beside it, as many pings, in the
same way: what a frame costs that reads nothing.
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

from bench.queued import cpu, processes
from bench.quick_mode import extent, keep
from bench.quiet import functions_unheard
from chalicelib.protocol.ulid import earliest
from gateway.aws.emulator import client
from gateway.configuration import configuration
from gateway.server import Running, gateway
from gateway.tokens import token

CLIENTS = extent(2000, 200)
TO_ALL, TO_GROUP, TO_EACH = 60, 38, 2
MESSAGES = TO_ALL + TO_GROUP + TO_EACH
AT_ONCE = 200
USERS_OF_A_POST = 100
GROUP = "team"
SECRET = {"HERALD_JWT_SECRET": "x" * 32}
TEXT = "x" * 100
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
RESULT = Path(__file__).parent / "results" / "resume.json"


class Storm(NamedTuple):
    """What all clients asked at once. Times in ms, but for `seconds`, until the last was answered;
    `cpu` is the functions', for each client."""

    seconds: float
    per_second: float
    median: float
    p99: float
    cpu: float


async def send(running: Running, users: list[str]) -> None:
    """A hundred messages for each user."""
    headers = {"Authorization": f"Bearer {token(SECRET, 'bench')}"}
    chunks = [users[at : at + USERS_OF_A_POST] for at in range(0, len(users), USERS_OF_A_POST)]
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
    """All ask, so many at a time."""
    places = asyncio.Semaphore(AT_ONCE)
    times: list[float] = []

    async def one(socket: ClientConnection) -> None:
        async with places:
            began = time.perf_counter()
            await ask(socket)
            times.append((time.perf_counter() - began) * 1000)

    before, began = {process: cpu(process) for process in processes()}, time.perf_counter()
    await asyncio.gather(*map(one, sockets))
    seconds = time.perf_counter() - began
    used = sum(cpu(process) - before.get(process, 0) for process in processes())
    return Storm(
        seconds,
        len(sockets) / seconds,
        statistics.median(times),
        statistics.quantiles(times, n=100)[-1],
        used * TICK_MS / len(sockets),
    )


async def ping(socket: ClientConnection) -> None:
    await socket.send('{"action": "ping"}')
    answer = json.loads(await socket.recv())
    if answer["type"] != "pong":
        raise SystemExit(f"no pong: {answer}")


async def resume(socket: ClientConnection, after: str) -> None:
    await socket.send(json.dumps({"action": "resume", "after": after}))
    ids: list[str] = []
    while (answer := json.loads(await socket.recv()))["type"] == "messages":
        ids += [message["id"] for message in answer["messages"]]
    if len(ids) != MESSAGES or ids != sorted(ids) or not answer.get("complete"):
        raise SystemExit(f"{len(ids)} came of {MESSAGES}: {answer}")


async def gone(running: Running, sockets: list[ClientConnection]) -> None:
    """Close all, and wait until Herald knows."""
    for socket in sockets:
        await socket.close()
    dynamodb = client("dynamodb", running.aws)
    while dynamodb.scan(TableName="herald-connections", Select="COUNT", Limit=1)["Count"]:
        await asyncio.sleep(1)


async def measure() -> dict[str, Any]:
    users = [f"user-{number}" for number in range(CLIENTS)]
    environment = {"HERALD_MESSAGE_RATE": "1000", "GATEWAY_SCHEDULE_SECONDS": "86400"}
    async with gateway(configuration({**SECRET, **environment, "PORT": "0"})) as running:

        async def come(user: str) -> ClientConnection:
            bearer = token(SECRET, user, groups=[GROUP])
            async with places:
                return await connect(
                    f"{running.websocket}?token={bearer}", ping_interval=None, open_timeout=60
                )

        places = asyncio.Semaphore(AT_ONCE)
        # Who is in the group before the messages are, has left when they come.
        await gone(running, await asyncio.gather(*map(come, users)))
        after = earliest(int(time.time() * 1000))
        await send(running, users)
        began = time.perf_counter()
        sockets = await asyncio.gather(*map(come, users))
        connected = time.perf_counter() - began
        pings = await storm(sockets, ping)
        resumes = await storm(sockets, lambda socket: resume(socket, after))
        await gone(running, sockets)
    return {
        "cpus": os.cpu_count(),
        "connected": connected,
        "pings": pings._asdict(),
        "resumes": resumes._asdict(),
    }


def main() -> None:
    with functions_unheard():
        results = asyncio.run(measure())
    print(
        f"{CLIENTS:,} clients connected in {results['connected']:.1f} s; then, {AT_ONCE} at a time:"
    )
    titles = ("in s", "per s", "median ms", "p99 ms", "CPU ms each")
    print(f"{'':28}" + "".join(f"{title:>13}" for title in titles))
    for title, kind in (("a ping each", "pings"), (f"{MESSAGES} messages resumed each", "resumes")):
        print(f"{title:28}" + "".join(f"{value:>13,.1f}" for value in results[kind].values()))
    keep(RESULT, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
