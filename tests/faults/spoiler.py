"""A proxy between Herald's functions and everything that they call, which injects faults.

It understands HTTP: it knows each request's name, numbers the requests in the order in which they
come, and does to some of them what networks and servers do.
"""

import contextlib
import http.client
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

AWS = "aws"
CONNECTIONS = "@connections"
LATE_SECONDS = 0.3  # less than any caller's time limit
QUIET_SECONDS = 1.2  # longer than the SDK's pause before it tries again


class Request(NamedTuple):
    """A request; `name` is for example `PutItem`, `SendMessageBatch` or `POST @connections`."""

    name: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def to_bytes(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Answer"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass
class Exchange:
    """A request, its caller's socket, and the function that forwards the request."""

    request: Request
    caller: socket.socket
    forward: Callable[[], Answer]

    def answer(self, answer: Answer) -> None:
        """Send an answer to the caller."""
        self.caller.sendall(answer.to_bytes())

    def close_sockets(self) -> None:
        """Close the connection so that the caller sees a reset."""
        linger = struct.pack("ii", 1, 0)
        self.caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def close(self) -> None:
        """Close the connection now, although a file still reads from it."""
        os.close(self.caller.detach())

    def wait_until_given_up(self) -> None:
        """Wait until the caller has closed the connection."""
        select.select([self.caller], [], [], 60)

    def kill_the_caller(self) -> None:
        """Kill the caller's process, and wait until it has ended."""
        os.kill(process_of(self.caller), signal.SIGKILL)
        self.wait_until_given_up()


Fault = Callable[[Exchange], None]


def untouched(exchange: Exchange) -> None:
    """Forward the request, without a fault."""
    exchange.answer(exchange.forward())


def throttled(exchange: Exchange) -> None:
    """Refuse the request as throttled."""
    if exchange.request.name.endswith(CONNECTIONS):
        exchange.answer(Answer(429, [("x-amzn-ErrorType", "LimitExceededException")], b""))
    else:
        kind = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"
        exchange.answer(_error(400, kind))


def failing(exchange: Exchange) -> None:
    """Answer with a server error."""
    exchange.answer(_error(500, "InternalServerError"))


def silent(exchange: Exchange) -> None:
    """Carry nothing out, and never answer."""
    exchange.wait_until_given_up()


def reset(exchange: Exchange) -> None:
    """Break the connection before anything is carried out."""
    exchange.close_sockets()


def answer_lost(exchange: Exchange) -> None:
    """Carry the request out, and break the connection."""
    exchange.forward()
    exchange.close_sockets()


def slow(exchange: Exchange) -> None:
    """Carry the request out late, but in time."""
    time.sleep(LATE_SECONDS)
    exchange.answer(exchange.forward())


def too_late(exchange: Exchange) -> None:
    """Carry the request out after the caller has given up, and may have tried again."""
    exchange.wait_until_given_up()
    exchange.forward()


def answered_too_late(exchange: Exchange) -> None:
    """Carry the request out, and don't answer before the caller has given up."""
    exchange.forward()
    exchange.wait_until_given_up()


def garbage(exchange: Exchange) -> None:
    """Answer as something else would, such as a proxy with a page of its own."""
    # `@connections` answers by its status alone, so a false 200 can't be recognized.
    status = 502 if exchange.request.name.endswith(CONNECTIONS) else 200
    exchange.answer(Answer(status, [("Content-Type", "text/html")], b"<html>Sign in</html>"))


def malformed(exchange: Exchange) -> None:
    """Carry the request out, and answer with invalid JSON."""
    answer = exchange.forward()
    exchange.answer(answer._replace(body=answer.body[:-1]))


def no_http(exchange: Exchange) -> None:
    """Answer with another protocol."""
    exchange.caller.sendall(b"\x15\x03\x01\x00\x02\x02\x46")
    exchange.close()


def cut_short(exchange: Exchange) -> None:
    """Carry the request out, and break off in the middle of the answer."""
    answer = exchange.forward()
    whole = Answer(answer.status, answer.headers, answer.body + b" " * 10).to_bytes()
    exchange.caller.sendall(whole[:-10])
    exchange.close()


def killed_before(exchange: Exchange) -> None:
    """Kill the caller before the request is carried out."""
    exchange.kill_the_caller()


def killed_after(exchange: Exchange) -> None:
    """Carry the request out, and kill the caller before it gets the answer."""
    exchange.forward()
    exchange.kill_the_caller()


FAULTS: list[Fault] = [
    slow,
    throttled,
    failing,
    silent,
    reset,
    answer_lost,
    too_late,
    answered_too_late,
    garbage,
    malformed,
    no_http,
    cut_short,
]
DEATHS: list[Fault] = [killed_before, killed_after]


@dataclass
class Plan:
    """A fault for `count` calls from number `first` on; the first call is 0."""

    fault: Fault
    first: int
    count: int


@dataclass
class Spoiler:
    """The proxy. It has a URL for AWS and one for CONNECTIONS."""

    urls: dict[str, str]
    targets: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    """The names of all requests since `begin`."""
    spoiled: list[str] = field(default_factory=list)
    """The names of the requests that got a fault."""
    _plan: Plan | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, plan: Plan | None = None) -> None:
        """Start to count requests, and to inject the planned faults."""
        with self._lock:
            self.calls, self.spoiled, self._plan = [], [], plan

    def wait_until_spoiled(self) -> None:
        """Wait until the planned faults have happened, or no more requests come."""
        seen, since = -1, time.monotonic()
        while self._plan is not None and len(self.spoiled) < self._plan.count:
            if len(self.calls) > seen:
                seen, since = len(self.calls), time.monotonic()
            elif time.monotonic() > since + QUIET_SECONDS:
                return
            time.sleep(0.005)

    def end(self) -> list[str]:
        """Inject no more faults. Returns the names of the requests."""
        with self._lock:
            self._plan = None
            return list(self.calls)

    def _fault(self, name: str) -> Fault | None:
        with self._lock:
            number = len(self.calls)
            self.calls.append(name)
            plan = self._plan
            if plan is None or not plan.first <= number < plan.first + plan.count:
                return None
            self.spoiled.append(name)
            return plan.fault

    def _serve(self, caller: socket.socket, kind: str) -> None:
        with caller, contextlib.suppress(OSError, http.client.HTTPException):
            file = caller.makefile("rb")
            while caller.fileno() >= 0 and (request := _read(file, kind)) is not None:
                fault = self._fault(request.name)
                exchange = Exchange(request, caller, self._forwarding(request, kind))
                if fault is None:
                    exchange.answer(exchange.forward())
                else:
                    fault(exchange)

    def _forwarding(self, request: Request, kind: str) -> Callable[[], Answer]:
        def forward() -> Answer:
            target = urlsplit(self.targets[kind]).netloc
            with contextlib.closing(http.client.HTTPConnection(target, timeout=60)) as connection:
                connection.putrequest(
                    request.method, request.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in request.headers:
                    connection.putheader(name, value)
                connection.endheaders(request.body)
                response = connection.getresponse()
                headers = [
                    (name, value)
                    for name, value in response.getheaders()
                    if name.lower() not in ("connection", "content-length", "transfer-encoding")
                ]
                return Answer(response.status, headers, response.read())

        return forward


@contextmanager
def spoiler() -> Iterator[Spoiler]:
    """Run a proxy on free ports of 127.0.0.1. Set its `targets` before it is used."""
    listeners = {
        kind: socket.create_server(("127.0.0.1", 0), backlog=512) for kind in (AWS, CONNECTIONS)
    }
    spoiling = Spoiler(
        {kind: f"http://127.0.0.1:{one.getsockname()[1]}" for kind, one in listeners.items()}
    )

    def accept(listener: socket.socket, kind: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listener.accept()
                thread = threading.Thread(target=spoiling._serve, args=(caller, kind), daemon=True)
                thread.start()

    threads = [
        threading.Thread(target=accept, args=(listener, kind), daemon=True)
        for kind, listener in listeners.items()
    ]
    for thread in threads:
        thread.start()
    yield spoiling
    for listener in listeners.values():
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def _read(file: BinaryIO, kind: str) -> Request | None:
    """Read the next request; return None at the end of the connection."""
    line = file.readline()
    if not line:
        return None
    method, path, _ = line.decode("latin-1").split(" ", 2)
    headers = http.client.parse_headers(file)
    body = file.read(int(headers.get("Content-Length", 0)))
    name = headers.get("X-Amz-Target", "").rpartition(".")[2] or f"{method} {kind}"
    return Request(name, method, path, headers.items(), body)


def _error(status: int, kind: str) -> Answer:
    return Answer(
        status,
        [("Content-Type", "application/x-amz-json-1.0"), ("x-amzn-ErrorType", kind)],
        b'{"__type": "%s", "message": "as planned"}' % kind.encode(),
    )


def process_of(caller: socket.socket) -> int:
    """Return the process at the other end of a connection over loopback."""
    wanted = [_packed(*caller.getpeername()), _packed(*caller.getsockname())]
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    # The kernel may list a socket twice while others come and go, and lists closed ones as inode 0.
    found = {fields[9] for fields in map(str.split, lines) if fields[1:3] == wanted}
    [inode] = found - {"0"}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == f"socket:[{inode}]":
                return int(link.parts[2])
    raise ProcessLookupError(f"nobody has the connection {wanted}")


def _packed(address: str, port: int) -> str:
    """Return an address as Linux's /proc shows it."""
    return "".join(f"{int(byte):02X}" for byte in reversed(address.split("."))) + f":{port:04X}"
