"""The neighbours: senders of a message now and then, with a record of what becomes of each."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection

from tests.support.neighbours.neighbourhood import PATIENCE_SECONDS, Neighbourhood, drain

SENDERS = 40  # take turns, so that none of them comes near their rate
SOCKETS = 10


@dataclass
class Experience:
    """What became of one neighbour's messages."""

    latencies: list[float] = field(default_factory=list)
    """Seconds until the answer, also that of a failure."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """`ok`, `not stored`, or what went wrong."""

    def add(self, other: "Experience") -> None:
        """Add what became of more messages."""
        self.latencies += other.latencies
        self.outcomes += other.outcomes

    @property
    def failures(self) -> int:
        """The number of messages that were not delivered."""
        return self.outcomes.total() - self.outcomes["ok"] - self.outcomes["not stored"]


class Neighbour:
    """Senders of one tenant. They take turns to send to a recipient, over REST or WebSockets."""

    def __init__(
        self,
        place: Neighbourhood,
        http: httpx.AsyncClient,
        *,
        name: str,
        tenant: str,
        recipient: str,
        sockets: list[ClientConnection] | None = None,
    ) -> None:
        """Take the sockets of the senders; without any, they use REST."""
        self._http = http
        self._recipient = recipient
        self._free: asyncio.Queue[ClientConnection] | None = None
        if sockets:
            self._free = asyncio.Queue()
            for socket in sockets:
                self._free.put_nowait(socket)
        self._headers = [place.headers(f"{name}-{number}", tenant) for number in range(SENDERS)]
        self._turns = count()

    async def send_for(self, seconds: float, per_second: float) -> Experience:
        """Send at a steady pace, whether or not the last message was answered."""
        experience = Experience()
        sending = []
        for _ in range(round(seconds * per_second)):
            sending.append(asyncio.create_task(self._send(experience)))
            await asyncio.sleep(1 / per_second)
        await asyncio.gather(*sending)
        return experience

    async def _send(self, experience: Experience) -> None:
        turn = next(self._turns)
        started = time.perf_counter()
        try:
            outcome = await (
                self._post(turn) if self._free is None else self._frame(turn, self._free)
            )
        except (TimeoutError, httpx.HTTPError) as error:
            outcome = type(error).__name__
        experience.latencies.append(time.perf_counter() - started)
        experience.outcomes[outcome] += 1

    async def _post(self, turn: int) -> str:
        body = {"to": {"users": [self._recipient]}, "data": turn}
        headers = self._headers[turn % SENDERS]
        answer = await self._http.post("/messages", json=body, headers=headers)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.json().get('code', '')}"
        return _outcome(answer.json()["messages"][0])

    async def _frame(self, turn: int, free: asyncio.Queue[ClientConnection]) -> str:
        to = {"users": [self._recipient]}
        socket = await free.get()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await socket.send(json.dumps({"action": "send", "to": to, "data": turn, "ref": "1"}))
            answer = json.loads(await socket.recv())
        free.put_nowait(socket)
        if answer.get("type") != "ack":
            return f"{answer.get('type')} {answer.get('code', '')}"
        return _outcome(answer)


def _outcome(report: Any) -> str:
    if report.get("delivered") != 1:
        return f"not delivered: {report}"
    return "ok" if report.get("stored", True) else "not stored"


Neighbours = dict[str, Neighbour]


@asynccontextmanager
async def neighbours(
    place: Neighbourhood, *, quiet_tenant: str, loud_tenant: str, victim: str
) -> AsyncIterator[Neighbours]:
    """Connect the neighbours and their recipients while the context lasts.

    Yields them by name: `post` and `frame` are in the quiet tenant, `same tenant` and `same
    recipient` in the loud one. `same recipient` sends to the loud sender's victim.
    """
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(place.http())
        for user, tenant in (("friend", quiet_tenant), ("friend", loud_tenant)):
            socket = await stack.enter_async_context(place.connect(user, tenant))
            reading = asyncio.create_task(drain(socket))
            stack.callback(reading.cancel)
        sockets = [
            await stack.enter_async_context(place.connect(f"frame-{number}", quiet_tenant))
            for number in range(SOCKETS)
        ]

        def neighbour(name: str, tenant: str, recipient: str, **more: Any) -> Neighbour:
            return Neighbour(place, http, name=name, tenant=tenant, recipient=recipient, **more)

        yield {
            "post": neighbour("post", quiet_tenant, "friend"),
            "frame": neighbour("frame", quiet_tenant, "friend", sockets=sockets),
            "same tenant": neighbour("same-tenant", loud_tenant, "friend"),
            "same recipient": neighbour("same-recipient", loud_tenant, victim),
        }


async def send_all(
    senders: Neighbours, seconds: float, per_second: Callable[[str], float]
) -> dict[str, Experience]:
    """Let all neighbours send for some seconds. Returns what each has experienced."""
    work: list[Coroutine[Any, Any, Experience]] = [
        one.send_for(seconds, per_second(name)) for name, one in senders.items()
    ]
    return dict(zip(senders, await asyncio.gather(*work), strict=True))
