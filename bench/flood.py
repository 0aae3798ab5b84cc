"""One user's flood of frames and another user's latency, through the local gateway.

    .venv/bin/python -m bench.flood

Two rows: round trips of a user's frames while nothing else happens, and beside another user who
sends up to twenty times what the rate limit allows. The rounds took turns. The last lines have the
ratio of the medians, how many of the flood's frames were refused, and how many were offered a
second: the flood waits while MAX_UNANSWERED of its frames have no answer, so that it offers no more
than this machine can refuse, and ends.

On AWS each execution environment has its own processor, and the two users share only the account's
quotas. Here everything shares the machine's cores, so this is the worst case.
"""

import asyncio
import contextlib
import json
import statistics
import time
from collections import Counter
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.bound import bounded
from bench.quick_mode import full_or_quick
from bench.quiet import stdout_discarded
from gateway.configuration import configuration
from gateway.server import gateway
from gateway.tokens import token

ROUNDS = full_or_quick(5, 1)
FRAMES = 40
PAUSE_SECONDS = 0.06  # below the user's rate limit
FLOOD_SOCKETS = 4
FLOOD_PER_SECOND = 400  # all sockets together; the rate limit is 20
MAX_UNANSWERED = 10
"""The frames of a socket of the flood that may be without an answer."""
DRAIN_SECONDS = 60
"""The bound of what a round waits for answers to the flood once it has ended."""
TO_NOBODY = json.dumps(
    {"action": "send", "to": {"connections": ["AAAAAAAAAAAAAAA="]}, "data": 1, "ref": "1"}
)
"""A frame that a function carries out and the user pays for, unlike a ping."""


class Flood:
    """A socket of the user who floods."""

    def __init__(self, socket: ClientConnection) -> None:
        self.answers: Counter[str] = Counter()
        """The answers by their code, or by their type if they are no errors."""
        self._socket = socket
        self._sent = 0
        self._answered = asyncio.Event()

    @property
    def unanswered(self) -> int:
        return self._sent - self.answers.total()

    async def read(self) -> None:
        """Count answers until the socket closes, which it does after 100 refusals in a row."""
        with contextlib.suppress(ConnectionClosed):
            async for text in self._socket:
                answer = json.loads(text)
                self.answers[answer.get("code", answer["type"])] += 1
                self._answered.set()
        self._sent = self.answers.total()  # nothing more will be answered
        self._answered.set()

    async def send(self) -> None:
        """Send frames without end, as fast as the flood's rate and MAX_UNANSWERED allow."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                while self.unanswered >= MAX_UNANSWERED:
                    self._answered.clear()
                    await self._answered.wait()
                await self._socket.send(TO_NOBODY)
                self._sent += 1
                await asyncio.sleep(FLOOD_SOCKETS / FLOOD_PER_SECOND)

    async def drain(self) -> None:
        """Wait until all frames are answered. Raises TimeoutError after DRAIN_SECONDS."""
        async with asyncio.timeout(DRAIN_SECONDS):
            while self.unanswered:
                self._answered.clear()
                await self._answered.wait()


async def measure() -> dict[str, Any]:
    """Measure the round trips of a user's frames, in seconds: `quiet`, and `flooded`."""
    environment = {"PORT": "0", "HERALD_JWT_SECRET": "x" * 32}
    async with gateway(configuration(environment)) as running, contextlib.AsyncExitStack() as stack:

        def client(user: str) -> connect:
            url = f"{running.websocket}?token={token(environment, user)}"
            return connect(url, ping_interval=None)  # a protocol ping would wait behind the flood

        bob = await stack.enter_async_context(client("bob"))
        floods = [
            Flood(await stack.enter_async_context(client("flood"))) for _ in range(FLOOD_SOCKETS)
        ]
        readers = [asyncio.create_task(flood.read()) for flood in floods]
        for reader in readers:
            stack.callback(reader.cancel)
        await _beside(floods, bob)  # not counted: execution environments start
        before = _answers(floods)
        results = await _rounds(floods, bob)
        return {**results, "answers": _answers(floods) - before}


async def _rounds(floods: list[Flood], bob: ClientConnection) -> dict[str, Any]:
    quiet: list[float] = []
    flooded: list[float] = []
    seconds = 0.0
    ended = ""
    for number in range(ROUNDS):
        quiet += await _frames(bob)
        began = time.perf_counter()
        try:
            flooded += await _beside(floods, bob)
        except TimeoutError:
            ended = f"ended in round {number + 1}: answers to the flood took over {DRAIN_SECONDS} s"
            break
        seconds += time.perf_counter() - began
    return {"quiet": quiet, "flooded": flooded, "seconds": seconds, "ended": ended}


def _answers(floods: list[Flood]) -> Counter[str]:
    """Return the answers to all sockets."""
    return sum((flood.answers for flood in floods), Counter())


async def _beside(floods: list[Flood], socket: ClientConnection) -> list[float]:
    """Return the round trips of frames beside a flood, once all of the flood is answered.

    Raises TimeoutError if that takes longer than DRAIN_SECONDS.
    """
    flooding = [asyncio.create_task(one.send()) for one in floods]
    try:
        return await _frames(socket)
    finally:
        for task in flooding:
            task.cancel()
        for one in floods:
            await one.drain()


async def _frames(socket: ClientConnection) -> list[float]:
    times = []
    for _ in range(FRAMES):
        started = time.perf_counter()
        await socket.send(TO_NOBODY)
        answer = json.loads(await socket.recv())
        if answer["type"] != "ack":
            raise SystemExit(f"The other user was refused: {answer}")
        times.append(time.perf_counter() - started)
        await asyncio.sleep(PAUSE_SECONDS)
    return times


@bounded(minutes=10)
def main() -> None:
    """Print both rows, their ratio, and what became of the flood."""
    with stdout_discarded():
        results = asyncio.run(measure())
    print(f"{'frame of another user':28} {'median ms':>10} {'p95 ms':>8}")
    for title, times in (("quiet", results["quiet"]), ("beside the flood", results["flooded"])):
        if len(times) > 1:
            p95 = statistics.quantiles(times, n=20)[18]
            print(f"{title:28} {statistics.median(times) * 1000:>10.1f} {p95 * 1000:>8.1f}")
    if results["ended"]:
        print(results["ended"])
    if not results["flooded"]:
        return
    ratio = statistics.median(results["flooded"]) / statistics.median(results["quiet"])
    answers = results["answers"]
    print(
        f"ratio of the medians {ratio:.2f}; {answers['rate_limited']} of the flood's"
        f" {answers.total()} frames refused; {answers.total() / results['seconds']:.0f} a second"
    )


if __name__ == "__main__":
    main()
