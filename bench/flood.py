"""One user's flood of frames and another user's latency, through the local gateway.

    .venv/bin/python -m bench.flood

Two rows: round trips of a user's pings while nothing else happens, and beside another user who
sends twenty times what the rate limit allows. The rounds took turns. The last line has the ratio of
the medians, and how many of the flood's frames were refused.

On AWS each execution environment has its own processor, and the two users share only the account's
quotas. Here everything shares the machine's cores, so this is the worst case.
"""

import asyncio
import contextlib
import json
import statistics
import time

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.quick_mode import full_or_quick
from bench.quiet import stdout_discarded
from gateway.configuration import configuration
from gateway.server import gateway
from gateway.tokens import token

ROUNDS = full_or_quick(5, 1)
PINGS = 40
PAUSE_SECONDS = 0.06  # below the user's rate limit
FLOOD_SOCKETS = 4
FLOOD_PER_SECOND = 400  # all sockets together; the rate limit is 20


async def measure() -> tuple[list[float], list[float], list[str]]:
    """Measure the round trips of a user's pings, in seconds.

    Returns those without a flood, those beside it, and the codes of the flood's answers.
    """
    environment = {"PORT": "0", "HERALD_JWT_SECRET": "x" * 32}
    async with gateway(configuration(environment)) as running:

        def client(user: str) -> connect:
            url = f"{running.websocket}?token={token(environment, user)}"
            return connect(url, ping_interval=None)  # a protocol ping would wait behind the flood

        async with client("bob") as bob, contextlib.AsyncExitStack() as stack:
            floods = [
                await stack.enter_async_context(client("flood")) for _ in range(FLOOD_SOCKETS)
            ]
            await _beside(floods, bob)  # not counted: execution environments start
            quiet: list[float] = []
            flooded: list[float] = []
            codes: list[str] = []
            for _ in range(ROUNDS):
                quiet += await _pings(bob)
                times, answers = await _beside(floods, bob)
                flooded += times
                codes += answers
    return quiet, flooded, codes


async def _beside(
    floods: list[ClientConnection], socket: ClientConnection
) -> tuple[list[float], list[str]]:
    """Return the round trips of pings beside a flood, and the codes of the flood's answers."""
    flooding = [asyncio.create_task(_flood(one)) for one in floods]
    times = await _pings(socket)
    for task in flooding:
        task.cancel()
    return times, [code for one in floods for code in await _drain(one)]


async def _pings(socket: ClientConnection) -> list[float]:
    times = []
    for _ in range(PINGS):
        started = time.perf_counter()
        await socket.send('{"action": "ping"}')
        answer = json.loads(await socket.recv())
        if answer["type"] != "pong":
            raise SystemExit(f"The other user was refused: {answer}")
        times.append(time.perf_counter() - started)
        await asyncio.sleep(PAUSE_SECONDS)
    return times


async def _flood(socket: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):  # after 100 refusals in a row
        while True:
            await socket.send('{"action": "ping"}')
            await asyncio.sleep(FLOOD_SOCKETS / FLOOD_PER_SECOND)


async def _drain(socket: ClientConnection) -> list[str]:
    """Return the codes of all answers, once no more have come for half a second."""
    codes = []
    with contextlib.suppress(TimeoutError, ConnectionClosed):
        while True:
            async with asyncio.timeout(0.5):
                codes.append(json.loads(await socket.recv()).get("code", "pong"))
    return codes


def main() -> None:
    with stdout_discarded():
        quiet, flooded, codes = asyncio.run(measure())
    print(f"{'ping of another user':28} {'median ms':>10} {'p95 ms':>8}")
    for title, times in (("quiet", quiet), ("beside the flood", flooded)):
        p95 = statistics.quantiles(times, n=20)[18]
        print(f"{title:28} {statistics.median(times) * 1000:>10.1f} {p95 * 1000:>8.1f}")
    ratio = statistics.median(flooded) / statistics.median(quiet)
    refused = codes.count("rate_limited")
    print(f"ratio of the medians {ratio:.2f}; {refused} of the flood's {len(codes)} frames refused")


if __name__ == "__main__":
    main()
