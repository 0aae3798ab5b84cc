"""A DynamoDB whose queries and scans are answered from memory; all other calls reach the emulator.

    .venv/bin/python -m bench.replay DESCRIPTOR EMULATOR CERTIFICATE KEY    # bench.end_to_end does

The emulator reads a whole partition for each page of a query, and a whole table for each page of a
scan, so that the time to read an audience grows with its square. DynamoDB's grows with the page.
Here the emulator answers each query and each scan once. What repeats it gets the same bytes, over
TLS and with DynamoDB's checksum, READ_SECONDS later.

The data must not change between two equal queries.
"""

import asyncio
import contextlib
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
READS = ("DynamoDB_20120810.Query", "DynamoDB_20120810.Scan")
START_SECONDS = 30.0
READ_SECONDS = 0.005
"""DynamoDB takes a few milliseconds for a page."""


class Replay:
    """Answers calls of DynamoDB's API."""

    def __init__(self, emulator: str) -> None:
        """Pass calls on to the emulator at this URL."""
        self._emulator = emulator
        self._pages: dict[tuple[str, bytes], Response] = {}
        self._client = httpx.AsyncClient(timeout=60)

    async def answer(self, request: Request) -> Response:
        """Answer a call."""
        call = request.headers.get("x-amz-target", ""), await request.body()
        if call in self._pages:
            await asyncio.sleep(READ_SECONDS)
            return self._pages[call]
        headers = request.headers.raw  # all of them, the host too, since the signature covers them
        answer = await self._client.post(self._emulator, content=call[1], headers=headers)
        response = Response(
            answer.content,
            answer.status_code,
            {
                "Content-Type": answer.headers["Content-Type"],
                "x-amz-crc32": str(crc32(answer.content)),
            },
        )
        if call[0] in READS:
            self._pages[call] = response
        return response


@contextmanager
def replaying(emulator: str, stub: Stub) -> Iterator[str]:
    """Serve on a free port, with the stub's certificate, while the context lasts; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
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
            url = f"https://127.0.0.1:{port}"
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
    with contextlib.suppress(KeyboardInterrupt), socket.socket(fileno=descriptor) as listener:
        uvicorn.Server(configuration).run([listener])


if __name__ == "__main__":
    _serve(int(sys.argv[1]), *sys.argv[2:])
