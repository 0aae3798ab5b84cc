"""A DynamoDB with a large audience: answers queries of its roster from memory, and passes on all
other calls.

The emulator sorts a whole shard of the roster for each page of a query, so the time to read 100,000
connections grows with their square, whereas DynamoDB's grows with the page.
"""

import asyncio
import contextlib
import json
import socket
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chalicelib.auth.principal import Principal
from chalicelib.clock import now_ms
from chalicelib.store.items import Connection
from chalicelib.store.schema import ROSTER_SHARDS, roster_group

QUERY = "DynamoDB_20120810.Query"
NOWHERE = {"connectionId": {"S": ""}}


class Tables:
    """Connections that exist only in the roster of the nameless tenant."""

    def __init__(self, endpoint: str) -> None:
        """Create an empty table, whose connections are at the `@connections` of `endpoint`."""
        self.emulator = ""
        """The URL that all other calls go to."""
        self._endpoint = endpoint
        self._shards: dict[str, tuple[list[str], list[bytes]]] = {}
        self._client = httpx.AsyncClient(timeout=30)

    def fill(self, count: int) -> None:
        """Hold `count` connections."""
        now = now_ms()
        principal = Principal("user", expires_at=now // 1000 + 7200)
        fields = ("connectionId", "userId", "reach")
        self._shards = {roster_group(None, shard): ([], []) for shard in range(ROSTER_SHARDS)}
        for connection_id in sorted(f"c-{number}" for number in range(count)):
            item = Connection(
                connection_id, principal, self._endpoint, connected_at=now, timestamp=now
            ).roster_entry()
            ids, items = self._shards[item["group"]["S"]]
            ids.append(connection_id)
            items.append(json.dumps({name: item[name] for name in fields}).encode())

    def _page(self, query: Any) -> bytes | None:
        """Return the answer to a query; None if it is not of the roster."""
        [group] = query["ExpressionAttributeValues"].values()
        if group["S"] not in self._shards:
            return None
        ids, items = self._shards[group["S"]]
        start = bisect_right(ids, query.get("ExclusiveStartKey", NOWHERE)["connectionId"]["S"])
        end = start + query["Limit"]
        last = b""
        if end < len(ids):
            key = {"group": group, "connectionId": {"S": ids[end - 1]}}
            last = b', "LastEvaluatedKey": ' + json.dumps(key).encode()
        return b'{"Items": [' + b", ".join(items[start:end]) + b"]" + last + b"}"

    async def answer(self, request: Request) -> Response:
        """Answer a call of DynamoDB's API."""
        body = await request.body()
        if request.headers.get("x-amz-target") == QUERY:
            page = self._page(json.loads(body))
            if page is not None:
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
