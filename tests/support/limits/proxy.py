"""The proxy, in a process of its own, and its control.

It parses no more of HTTP than it must, so that it is never the bottleneck. The process serves two
ports: one stands before DynamoDB, the other before `@connections`.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from gateway.configuration import PROJECT
from gateway.server import Running
from tests.support.limits.buckets import Bucket, Limits
from tests.support.limits.dynamodb import Answer, LimitedDynamoDB
from tests.support.limits.schema import herald_tables

CONTROL = b"/limits/"
IDLE_SECONDS = 2.0  # servers close sockets that are idle for longer
LINE_END = b"\r\n"
HEAD_END = b"\r\n\r\n"
QUOTA_EXCEEDED = (
    b"HTTP/1.1 429 Too Many Requests\r\nx-amzn-ErrorType: LimitExceededException\r\n"
    b'Content-Type: application/json\r\nContent-Length: 30\r\n\r\n{"message": "Limit Exceeded"} '
)


class Request(NamedTuple):
    """A request as it came: `head` ends in an empty line."""

    head: bytes
    body: bytes

    @property
    def path(self) -> bytes:
        return self.head.split(b" ", 2)[1]

    def header(self, name: bytes) -> str:
        """Return a header's value, or an empty string."""
        return _header(self.head, name).decode("latin-1")


class Upstream:
    """Kept-alive connections to one server."""

    def __init__(self) -> None:
        self.address = ("", 0)
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def exchange(self, request: bytes) -> bytes:
        """Send a request. Returns the response, from its status line to the end of its body."""
        reader, writer = await self._connection()
        try:
            writer.write(request)
            head = await reader.readuntil(HEAD_END)
            body = await reader.readexactly(int(_header(head, b"content-length") or 0))
        except BaseException:
            writer.close()
            raise
        self._idle.append((asyncio.get_running_loop().time(), reader, writer))
        return head + body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if not reader.at_eof() and since + IDLE_SECONDS > asyncio.get_running_loop().time():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self.address)


class LimitingProxy:
    """The two servers, and what they count."""

    def __init__(self, limits: Limits, owners: Sequence[str]) -> None:
        self._limits = limits
        self._dynamodb = LimitedDynamoDB(limits, herald_tables(), owners)
        self._upstreams = {"dynamodb": Upstream(), "connections": Upstream()}
        self._signer: SigV4Auth | None = None
        self._serving: set[asyncio.Task[None] | None] = set()
        self._begin()

    def _begin(self) -> None:
        self._dynamodb.begin()
        limits = self._limits
        self._quota = Bucket(limits.connections_rate, limits.connections_burst)
        self._sent: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    async def serve(self, listeners: dict[str, socket.socket]) -> None:
        """Serve until standard input ends; then end the process."""
        answers = {"dynamodb": self._call_dynamodb, "connections": self._call_connections}
        for kind, listener in listeners.items():
            connected = partial(self._connected, answers[kind])
            await asyncio.start_server(connected, sock=listener)
        await asyncio.to_thread(sys.stdin.read)
        os._exit(0)  # requests that still wait for an answer end, too

    async def _connected(
        self,
        answer: Callable[[Request], Awaitable[bytes]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Answer the requests of one connection."""
        task = asyncio.current_task()
        self._serving.add(task)  # the loop has only a weak reference once the caller has gone
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(HEAD_END)
                length = int(_header(head, b"content-length") or 0)
                request = Request(head, await reader.readexactly(length))
                if request.path.startswith(CONTROL):
                    writer.write(self._control(request))
                else:
                    writer.write(await answer(request))
        writer.close()
        self._serving.discard(task)

    def _control(self, request: Request) -> bytes:
        match request.path.removeprefix(CONTROL):
            case b"targets":
                targets = json.loads(request.body)
                for kind, upstream in self._upstreams.items():
                    parts = urlsplit(targets[kind])
                    upstream.address = (parts.hostname or "", parts.port or 0)
                credentials = Credentials(targets["accessKey"], targets["secretKey"])
                self._signer = SigV4Auth(credentials, "dynamodb", targets["region"])
            case b"begin":
                self._begin()
        counts = {
            "units": self._dynamodb.units,
            "calls": self._dynamodb.calls,
            "throttled": self._dynamodb.throttled,
            "sent": self._sent,
            "refused": self._refused,
            "cpuSeconds": sum(os.times()[:2]),
        }
        return _response(Answer(200, json.dumps(counts).encode()))

    async def _call_connections(self, request: Request) -> bytes:
        connection_id = unquote(request.path.rpartition(b"/")[2].decode())
        if self._quota.empty:
            self._refused[connection_id] += 1
            return QUOTA_EXCEEDED
        self._quota.spend(1)
        self._sent[connection_id] += 1
        return await self._upstreams["connections"].exchange(request.head + request.body)

    async def _call_dynamodb(self, request: Request) -> bytes:
        operation = request.header(b"x-amz-target").rpartition(".")[2]
        as_it_came: list[bytes] = []

        async def forward(body: bytes) -> Answer:
            sent = request if body == request.body else self._signed_anew(request, body)
            response = await self._upstreams["dynamodb"].exchange(sent.head + sent.body)
            head, _, content = response.partition(HEAD_END)
            as_it_came.append(response)
            return Answer(int(head.split(b" ", 2)[1]), content)

        answer = await self._dynamodb.call(operation, request.body, forward)
        if as_it_came and as_it_came[0].endswith(answer.body):
            return as_it_came[0]
        return _response(answer)

    def _signed_anew(self, request: Request, body: bytes) -> Request:
        """Return a request with another body, and the signature for it."""
        assert self._signer is not None
        names = (b"host", b"content-type", b"x-amz-target")
        headers = {name.decode(): request.header(name) for name in names}
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        url = f"http://{headers['host']}/"
        signed = AWSRequest("POST", url, {**headers, "X-Amz-Date": moment}, body)
        self._signer.add_auth(signed)
        lines = [f"{name}: {value}" for name, value in signed.headers.items()]
        lines = ["POST / HTTP/1.1", *lines, f"Content-Length: {len(body)}"]
        return Request("\r\n".join(lines).encode() + HEAD_END, body)


def _header(head: bytes, name: bytes) -> bytes:
    """Return the value of a header; `name` is in lower case."""
    start = head.lower().find(LINE_END + name + b":")
    if start < 0:
        return b""
    start += len(LINE_END + name) + 1
    return head[start : head.index(LINE_END, start)].strip()


def _response(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} Answer\r\nContent-Type: application/x-amz-json-1.0\r\n"
        f"Content-Length: {len(answer.body)}\r\n\r\n"
    )
    return head.encode() + answer.body


# --- For tests and benchmarks


class Counts(NamedTuple):
    """What the proxy has counted since `begin`. For the fields see `LimitedDynamoDB`."""

    units: dict[str, dict[str, float]]
    calls: dict[str, dict[str, int]]
    throttled: dict[str, dict[str, int]]
    sent: dict[str, int]
    """Requests to `@connections` within the quota, by connection id."""
    refused: dict[str, int]
    """Those beyond it."""
    cpuSeconds: float  # noqa: N815 - as it is in JSON
    """The processor time of the proxy itself, since it started."""


class Control:
    """A running proxy: its URLs, and what it counts."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.dynamodb = f"http://127.0.0.1:{ports['dynamodb']}"
        self.connections = f"http://127.0.0.1:{ports['connections']}"

    def lead_to(self, running: Running) -> None:
        """Forward to the services behind a gateway. To be called before anything is forwarded."""
        self._ask(
            "targets",
            dynamodb=running.aws["AWS_ENDPOINT_URL"],
            connections=running.http,
            accessKey=running.aws["AWS_ACCESS_KEY_ID"],
            secretKey=running.aws["AWS_SECRET_ACCESS_KEY"],
            region=running.aws["AWS_REGION"],
        )

    def begin(self) -> None:
        """Fill all buckets, and count from zero."""
        self._ask("begin")

    def counts(self) -> Counts:
        """Return what was counted since `begin`."""
        return Counts(**self._ask("counts"))

    def _ask(self, what: str, **fields: str) -> Any:
        url = f"{self.dynamodb}{CONTROL.decode()}{what}"
        request = urllib.request.Request(url, json.dumps(fields).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


@contextmanager
def limiting_proxy(limits: Limits, owners: Sequence[str]) -> Iterator[Control]:
    """Run a proxy with these limits. Its calls are counted for the owners that they name."""
    with contextlib.ExitStack() as stack:
        listeners = {
            kind: stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
            for kind in ("dynamodb", "connections")
        }
        arguments = {
            "limits": limits._asdict(),
            "owners": list(owners),
            "listeners": {kind: listener.fileno() for kind, listener in listeners.items()},
        }
        stack.enter_context(  # it ends with its standard input, which the context closes
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.limits.proxy", json.dumps(arguments)],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno() for listener in listeners.values()],
                cwd=PROJECT,
            )
        )
        ports = {kind: listener.getsockname()[1] for kind, listener in listeners.items()}
        yield Control(ports)


def _main(arguments: Any) -> None:
    proxy = LimitingProxy(Limits(**arguments["limits"]), arguments["owners"])
    listeners = {
        kind: socket.socket(fileno=number) for kind, number in arguments["listeners"].items()
    }
    asyncio.run(proxy.serve(listeners))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
