"""A DynamoDB with a large audience: answers scans from memory, and passes on all other calls.

The emulator reads its whole table for each page of a scan, so the time to read 100,000 connections
grows with their square, whereas DynamoDB's grows with the page. Here every page is encoded
beforehand, for each number of segments that Herald may ask for.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chalicelib.auth.principal import Principal
from chalicelib.clock import now_ms
from chalicelib.store.items import Connection

PAGE_ITEMS = 1000
SCAN = "DynamoDB_20120810.Scan"


class Tables:
    """Connections that exist only in scans."""

    def __init__(self, endpoint: str) -> None:
        """Create an empty table, whose connections are at the `@connections` of `endpoint`."""
        self.emulator = ""
        """The URL that all calls except scans go to."""
        self._endpoint = endpoint
        self._pages: dict[tuple[int, int, str], bytes] = {}
        self._client = httpx.AsyncClient(timeout=30)

    def fill(self, count: int, segments: tuple[int, ...]) -> None:
        """Hold `count` connections, which can be scanned in each of these numbers of segments."""
        now = now_ms()
        principal = Principal("user", expires_at=now // 1000 + 7200)
        fields = ("connectionId", "userId", "reach")
        items = []
        for number in range(count):
            item = Connection(
                f"c-{number}", principal, self._endpoint, connected_at=now, timestamp=now
            ).to_item()
            items.append({name: item[name] for name in fields})
        self._pages.clear()
        for total in segments:
            for segment in range(total):
                self._add(total, segment, items[segment::total])

    def _add(self, total: int, segment: int, items: list[dict[str, object]]) -> None:
        start = ""
        for index in range(0, max(1, len(items)), PAGE_ITEMS):
            page = items[index : index + PAGE_ITEMS]
            answer: dict[str, object] = {"Items": page, "Count": len(page)}
            key = (total, segment, start)
            if index + PAGE_ITEMS < len(items):
                last: dict[str, str] = page[-1]["connectionId"]  # type: ignore[assignment]
                answer["LastEvaluatedKey"] = {"connectionId": last}
                start = last["S"]
            self._pages[key] = json.dumps(answer).encode()

    async def answer(self, request: Request) -> Response:
        """Answer a call of DynamoDB's API."""
        body = await request.body()
        if request.headers.get("x-amz-target") == SCAN:
            scan = json.loads(body)
            start = scan.get("ExclusiveStartKey", {"connectionId": {"S": ""}})["connectionId"]["S"]
            page = self._pages[scan.get("TotalSegments", 1), scan.get("Segment", 0), start]
            return Response(page, headers={"Content-Type": "application/x-amz-json-1.0"})
        headers = request.headers.raw  # all of them, the host too, since the signature covers them
        answer = await self._client.post(self.emulator, content=body, headers=headers)
        media_type = answer.headers["Content-Type"]
        return Response(answer.content, answer.status_code, media_type=media_type)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(tables: Tables) -> AsyncIterator[str]:
    """Serve the tables on a free port of 127.0.0.1; yield the URL for an SDK."""
    app = Starlette(routes=[Route("/", tables.answer, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = _Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
