"""A DynamoDB that is never the bottleneck: it answers from memory, as late as DynamoDB would.

    .venv/bin/python -m bench.replay DESCRIPTOR EMULATOR CERTIFICATE KEY    # bench.end_to_end does

The emulator reads a whole partition for each page of a query, and a whole table for each page of a
scan, so that the time to read an audience grows with its square. It also needs milliseconds of the
stub's core to write an item.

Here the emulator answers each read once. A read that repeats it gets the same bytes. Writes succeed
and are not kept, so the data must not change meanwhile. Answers come over TLS, with DynamoDB's
checksum, WRITE_SECONDS or READ_SECONDS after the request.
"""

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.stub import Stub

PROJECT = Path(__file__).parent.parent
START_SECONDS = 30.0
WRITE_SECONDS, READ_SECONDS = 0.005, 0.01  # most writes here have one item, most reads hundreds
READS = ("BatchGetItem", "Query", "Scan")
WRITES = {"BatchWriteItem": b'{"UnprocessedItems":{}}', "UpdateItem": b"{}"}
"""The responses of writes that succeed."""


class Replay:
    """Answers calls of DynamoDB's API."""

    def __init__(self, emulator: str) -> None:
        """Pass what is not in memory on to the emulator at this URL."""
        self._emulator = emulator
        self._reads: dict[tuple[str, bytes], bytes] = {}
        self._client = httpx.AsyncClient(timeout=60)

    async def answer(self, request: Request) -> Response:
        """Answer a call."""
        operation = request.headers.get("x-amz-target", "").rpartition(".")[2]
        body = await request.body()
        answer = WRITES.get(operation) or self._reads.get((operation, body))
        if answer is None:
            return await self._pass_on(request, operation, body)
        await asyncio.sleep(WRITE_SECONDS if operation in WRITES else READ_SECONDS)
        return _response(answer)

    async def _pass_on(self, request: Request, operation: str, body: bytes) -> Response:
        headers = request.headers.raw  # all of them, the host too, since the signature covers them
        answer = await self._client.post(self._emulator, content=body, headers=headers)
        if operation in READS and answer.status_code == httpx.codes.OK:
            self._reads[operation, body] = answer.content
        return _response(answer.content, answer.status_code)


def _response(body: bytes, status: int = 200) -> Response:
    headers = {"Content-Type": "application/x-amz-json-1.0", "x-amz-crc32": str(crc32(body))}
    return Response(body, status, headers)


@contextmanager
def replaying(emulator: str, stub: Stub) -> Iterator[str]:
    """Serve on a free port, with the stub's certificate, while the context lasts; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "bench.replay", str(listener.fileno()), emulator),
                *(str(stub.certificate), str(stub.key)),
            ],
            cwd=PROJECT,
            pass_fds=[listener.fileno()],
        )
        try:
            # The socket takes connections already, so this waits until the process answers.
            context = ssl.create_default_context(cafile=stub.authority)
            httpx.get(url, verify=context, timeout=START_SECONDS)
            yield url
        finally:
            process.terminate()
            process.wait()


def _serve(descriptor: int, emulator: str, certificate: str, key: str) -> None:
    app = Starlette(routes=[Route("/", Replay(emulator).answer, methods=["POST"])])
    configuration = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    with socket.socket(fileno=descriptor) as listener:
        uvicorn.Server(configuration).run([listener])


if __name__ == "__main__":
    _serve(int(sys.argv[1]), *sys.argv[2:])
