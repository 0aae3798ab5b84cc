"""What one user's flood does to another's latency, through the local gateway and real sockets.

Quiet and flooded rounds take turns. On AWS each function has a machine of its own and the two users
share nothing but the account's quotas; here they share two cores, so that this is the worst case.
"""

import asyncio
import contextlib
import json
import statistics
import time

from websockets.asyncio.client import ClientConnection, connect

from bench.quick_mode import extent
from bench.quiet import functions_unheard
from gateway.configuration import configuration
from gateway.server import gateway
from gateway.tokens import token

ROUNDS = extent(5, 1)
PINGS = 40
PAUSE_SECONDS = 0.06  # within the user's rate
FLOOD_SOCKETS = 4
FLOOD_PER_SECOND = 400  # of all of them; the rate allows 20


async def measure() -> tuple[list[float], list[float], list[str]]:
    """The round trips of a user's pings, without and with another's flood, in seconds; and what the
    flood was answered."""
    environment = {"PORT": "0", "HERALD_JWT_SECRET": "x" * 32}
    async with gateway(configuration(environment)) as running:

        def client(user: str) -> connect:
            url = f"{running.websocket}?token={token(environment, user)}"
            return connect(url, ping_interval=None)  # as the network's, it waits behind the flood

        async with client("bob") as bob, contextlib.AsyncExitStack() as stack:
            floods = [
                await stack.enter_async_context(client("flood")) for _ in range(FLOOD_SOCKETS)
            ]
            await _beside(floods, bob)  # until there are as many processes as it takes
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
    """The round trips of pings beside a flood, and what the flood was answered."""
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
            raise SystemExit(f"the other user was refused: {answer}")
        times.append(time.perf_counter() - started)
        await asyncio.sleep(PAUSE_SECONDS)
    return times


async def _flood(socket: ClientConnection) -> None:
    while True:
        await socket.send('{"action": "ping"}')
        await asyncio.sleep(FLOOD_SOCKETS / FLOOD_PER_SECOND)


async def _drain(socket: ClientConnection) -> list[str]:
    """The codes of all answers that have come, or come within a moment."""
    codes = []
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0.5):
                codes.append(json.loads(await socket.recv()).get("code", "pong"))
    return codes


def main() -> None:
    with functions_unheard():
        quiet, flooded, codes = asyncio.run(measure())
    print(f"{'a ping of another user':28} {'median ms':>10} {'p95 ms':>8}")
    for title, times in (("quiet", quiet), ("beside the flood", flooded)):
        p95 = statistics.quantiles(times, n=20)[18]
        print(f"{title:28} {statistics.median(times) * 1000:>10.1f} {p95 * 1000:>8.1f}")
    ratio = statistics.median(flooded) / statistics.median(quiet)
    refused = codes.count("rate_limited")
    print(f"ratio of the medians {ratio:.2f}; {refused} of the flood's {len(codes)} frames refused")


if __name__ == "__main__":
    main()
