"""The loud sender: one user with an ordinary token, and the worst that they can do.

Each act goes on until it is cancelled. It keeps to the limits or ignores refusals, whichever is
worse for others.
"""

import asyncio
import base64
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.neighbours.neighbourhood import (
    FRAME_BYTES,
    LOUD_TENANT,
    Neighbourhood,
    drain,
)

VICTIM = "victim"
CROWD = "crowd"
MEMBERS = 1000  # of the crowd: as many as inline delivery reaches
OTHERS = 2000  # connected users of the same tenant outside the crowd
SOCKETS = 9  # a user may have ten
FLOOD_PER_SECOND = 100
"""Requests that are refused or cost nothing: five times what the rates allow. With more, this
machine would be the bottleneck: each handshake takes two functions."""
NAMES, MESSAGES = 100, 100  # the most that a request may have
FRAMES = 60  # for one recipient: as many of 32 KB as fit into a request
AT_ONCE = 4  # requests under way

ACTS = (
    "to names of nobody",
    "to one stream",
    "frames to a group",
    "to all, through the queue",
    "frames",
    "resumes",
    "handshakes",
    "refused requests",
    "reads",
    "health checks",
)


class Loud:
    """The loud sender; a crowd in the same tenant receives.

    It is another user for each act, since a user may still owe for the act before. `outcomes`
    counts the answers to its requests, by status or by the frame's code.
    """

    def __init__(self, place: Neighbourhood, http: httpx.AsyncClient) -> None:
        self.outcomes: Counter[str] = Counter()
        self._place = place
        self._http = http
        self._numbers = count()
        self._user = ""
        self._pause = place.scale.factor / FLOOD_PER_SECOND

    @asynccontextmanager
    async def acting(self, act: str) -> AsyncIterator[None]:
        """Act, as a new user, while the context lasts."""
        self._user = f"mallory-{next(self._numbers)}"

        async def run() -> None:
            await self._acts[act]()

        task = asyncio.create_task(run())
        try:
            yield
            assert not task.done(), "the loud sender stopped too early"
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @property
    def _headers(self) -> dict[str, str]:
        return self._place.headers(self._user, LOUD_TENANT)

    @property
    def _acts(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The acts, by their names in ACTS."""
        acts = (
            self._to_nobody,
            self._to_one_stream,
            self._frames_to_a_group,
            self._to_all,
            self._frames,
            self._resumes,
            self._handshakes,
            self._refused_requests,
            self._reads,
            self._health_checks,
        )
        return dict(zip(ACTS, acts, strict=True))

    async def _to_nobody(self) -> None:
        def body() -> Any:
            nobody = [f"nobody-{random.getrandbits(64)}" for _ in range(NAMES)]
            return {"messages": [{"to": {"users": nobody}, "data": 1}] * MESSAGES}

        await self._post_at_full_rate(body)

    async def _to_one_stream(self) -> None:
        message = {"to": {"users": [VICTIM]}, "data": 1}
        await self._post_at_full_rate(lambda: {"messages": [message] * MESSAGES})

    async def _frames_to_a_group(self) -> None:
        """Send as many full frames as a request can have; the history keeps none of them."""
        noise = base64.b64encode(random.randbytes(FRAME_BYTES // 2)).decode()
        message = {"to": {"groups": [CROWD]}, "data": noise, "store": False}
        await self._post_at_full_rate(lambda: {"messages": [message] * FRAMES})

    async def _to_all(self) -> None:
        await self._post_at_full_rate(lambda: {"to": {"all": True}, "data": 1})

    async def _frames(self) -> None:
        frame = json.dumps({"action": "send", "to": {"users": [VICTIM]}, "data": 1})
        await self._send_frames(frame)

    async def _resumes(self) -> None:
        message = {"to": {"users": [self._user]}, "data": "x" * FRAME_BYTES}
        await self._request("POST", "/messages", json={"messages": [message] * MESSAGES})
        await self._send_frames(json.dumps({"action": "resume", "after": "0" * 26}))

    async def _handshakes(self) -> None:
        async def connect() -> str:
            async with self._place.connect(self._user, LOUD_TENANT):
                return "101"

        await self._flood(connect)

    async def _refused_requests(self) -> None:
        bodies = [b"not json", b'{"to": {"users": []}}', b'{"to": {"groups": ["g"]}, "dta": 1}']

        async def refused() -> str:
            return await self._request("POST", "/messages", content=random.choice(bodies))

        await self._flood(refused)

    async def _reads(self) -> None:
        paths = [
            f"/users/{self._user}",
            f"/users/{self._user}/connections",
            "/messages/" + "0" * 26,
            "/keys",
        ]

        async def read() -> str:
            return await self._request("GET", random.choice(paths))

        await self._flood(read)

    async def _health_checks(self) -> None:
        async def check() -> str:
            return str((await self._http.get("/health")).status_code)

        await self._flood(check)

    # --- How often

    async def _post_at_full_rate(self, body: Callable[[], Any]) -> None:
        """Post several requests at a time, each again as soon as its answer allows."""

        async def post() -> None:
            while True:
                content = json.dumps(body()).encode()
                try:
                    answer = await self._http.post(
                        "/messages", content=content, headers=self._headers
                    )
                except httpx.HTTPError as error:
                    self.outcomes[type(error).__name__] += 1
                    continue
                self.outcomes[str(answer.status_code)] += 1
                if answer.status_code in (200, 202):
                    self._count_unstored(answer.json())
                await asyncio.sleep(float(answer.headers.get("Retry-After", 0)))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(post())

    def _count_unstored(self, answer: Any) -> None:
        if not all(report.get("stored", True) for report in answer["messages"]):
            self.outcomes["not all stored"] += 1

    async def _request(self, method: str, path: str, **options: Any) -> str:
        answer = await self._http.request(method, path, headers=self._headers, **options)
        return str(answer.status_code)

    async def _flood(self, request: Callable[[], Awaitable[str]]) -> None:
        """Repeat a request, whatever the answer."""

        async def once() -> None:
            try:
                outcome = await request()
            except InvalidStatus as refused:
                outcome = str(refused.response.status_code)
            except (OSError, httpx.HTTPError) as error:
                outcome = type(error).__name__
            self.outcomes[outcome] += 1

        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(once())
                await asyncio.sleep(self._pause)

    async def _send_frames(self, frame: str) -> None:
        """Send a frame again and again, over all sockets in turn. One that ends is replaced."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(SOCKETS):
                tasks.create_task(self._send_over_one_socket(frame))
                await asyncio.sleep(self._pause)  # at once, they would keep the machine busy

    async def _send_over_one_socket(self, frame: str) -> None:
        while True:
            with suppress(ConnectionClosed):
                try:
                    async with self._place.connect(self._user, LOUD_TENANT) as socket:
                        reading = asyncio.create_task(self._read(socket))
                        while not reading.done():
                            await socket.send(frame)
                            await asyncio.sleep(self._pause * SOCKETS)
                except InvalidStatus as refused:
                    self.outcomes[str(refused.response.status_code)] += 1
            await asyncio.sleep(self._pause * SOCKETS)

    async def _read(self, socket: ClientConnection) -> None:
        """Count what a socket receives, to its end."""
        with suppress(ConnectionClosed):
            async for text in socket:
                frame = json.loads(text)
                if frame["type"] != "messages":
                    self.outcomes[frame.get("code") or frame["type"]] += 1


@asynccontextmanager
async def loud(place: Neighbourhood) -> AsyncIterator[Loud]:
    """Connect the victim and the crowd while the context lasts. Yields the loud sender."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(place.http())
        crowd = [f"member-{number}" for number in range(place.scale.count(MEMBERS))]
        others = [f"other-{number}" for number in range(place.scale.count(OTHERS))]
        for user in (VICTIM, *crowd, *others):
            socket = await _connected(place, user, [CROWD] if user in crowd else [])
            stack.push_async_callback(socket.close)
            reading = asyncio.create_task(drain(socket))
            stack.callback(reading.cancel)
        yield Loud(place, http)


async def _connected(place: Neighbourhood, user: str, groups: list[str]) -> ClientConnection:
    """Connect a user, and try again while too many connect at once."""
    while True:
        try:
            return await place.connect(user, LOUD_TENANT, groups=groups)
        except InvalidStatus as refused:
            assert refused.response.status_code == 503
            await asyncio.sleep(0.2)
