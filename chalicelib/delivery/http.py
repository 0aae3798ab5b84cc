"""HTTP/1.1 to `@connections`: kept-alive connections, thousands of requests a second, one thread.

The SDK spends 0.6 to 0.9 ms of processor time on a request, and an event loop's protocol stack a
tenth of that. Here a request is one write and one read of a non-blocking socket. TLS is Python's
`ssl` and the parser is httptools'; what is ours is what happens when (decision 0004).
"""

import contextlib
import os
import re
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import httptools
from botocore.httpsession import get_cert_path

CONNECT_SECONDS = 2.0  # looking the name up, TCP and TLS together
ANSWER_SECONDS = 2.0
ADDRESS_SECONDS = 60.0  # API Gateway's own DNS records live so long
IDLE_SECONDS = 60.0  # what slept longer, say in a frozen Lambda, may be cut without a sign
RECEIVE_BYTES = 16 * 1024  # a TLS record: nothing is left behind in the TLS layer
MAX_ANSWER_BYTES = 64 * 1024

TIMEOUT = "timeout"
CONNECTION_FAILED = "connection_failed"
MALFORMED_ANSWER = "malformed_answer"

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_READ = selectors.EVENT_READ
_READ_AND_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE

J = TypeVar("J")


class Ended(NamedTuple, Generic[J]):
    """How the request of one job ended: with a `status`, or with none (0) and a `failure`.

    `error_type` is what API Gateway calls a refusal. `lost`: a kept-alive connection broke before
    a byte of the answer came. The server had closed it, most likely without seeing the request,
    which may go out again at once.
    """

    job: J
    status: int
    failure: str = ""
    lost: bool = False
    error_type: str = ""


class Origin:
    """One scheme, host and port, and what is known of it."""

    __slots__ = ("addresses", "host", "idle", "looked_up", "port", "secure", "session", "waiting")

    def __init__(self, endpoint: str) -> None:
        """Of an `endpoint`, which is an http or https URL."""
        parts = urlsplit(endpoint)
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self.addresses: list[Any] = []
        self.looked_up = 0.0
        self.waiting: list[_Wire[Any]] | None = None
        self.idle: list[_Wire[Any]] = []
        self.session: ssl.SSLSession | None = None


class _Wire(Generic[J]):
    """One connection and the request that it carries. `step` is what to do when it is ready."""

    __slots__ = (
        "addresses",
        "answered",
        "due",
        "finished",
        "job",
        "keep",
        "origin",
        "parser",
        "received",
        "reused",
        "sock",
        "step",
        "unsent",
        "watched",
    )

    def __init__(self, origin: Origin, job: J, request: bytes, due: float) -> None:
        self.origin: Origin = origin
        self.job = job
        self.unsent = request
        self.due = due
        self.addresses: Iterator[Any] = iter(())
        self.sock: Any = None  # a socket, then perhaps the TLS around it
        self.step: Step[J]
        self.watched = self.reused = self.finished = self.keep = False
        self.received = b""
        self.parser = httptools.HttpResponseParser(self)

    def on_message_complete(self) -> None:
        """Called by the parser; 100 Continue and its like come before the answer."""
        self.finished = self.parser.get_status_code() >= 200
        self.keep = self.parser.should_keep_alive()


Step = Callable[[_Wire[J]], None]


class Transport(Generic[J]):
    """Connections to any number of origins. For one thread at a time, but for `wake`."""

    def __init__(self, tls: Callable[[], ssl.SSLContext]) -> None:
        """`tls` makes what verifies servers; it is not asked for until one needs it."""
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, _READ)
        self._looked_up: deque[tuple[Origin, list[Any]]] = deque()
        # Each in the order of their due times, since all of a kind are given the same time.
        self._opening: dict[_Wire[J], None] = {}
        self._busy: dict[_Wire[J], None] = {}
        self._ended: list[Ended[J]] = []

    def start(self, origin: Origin, job: J, request: bytes) -> None:
        """Send `request` for `job`, on an idle connection or a new one. `poll` tells its end."""
        if not origin.idle:
            self._open(_Wire(origin, job, request, time.monotonic() + CONNECT_SECONDS))
            return
        wire = origin.idle.pop()  # the latest used is the likeliest to live
        wire.job, wire.unsent, wire.reused = job, request, True
        self._send(wire)

    def poll(self, seconds: float) -> list[Ended[J]]:
        """Wait at most so long for something to happen; what has ended since."""
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.data is None:
                self._hear()
            else:
                key.data.step(key.data)
        now = time.monotonic()
        for waiting in (self._opening, self._busy):
            while waiting and (wire := next(iter(waiting))).due <= now:
                self._fail(wire, TIMEOUT)
        ended, self._ended = self._ended, []
        return ended

    def next_due(self) -> float:
        """When the first time-out is due, in `time.monotonic` seconds."""
        firsts = (next(iter(waiting)).due for waiting in (self._opening, self._busy) if waiting)
        return min(firsts, default=float("inf"))

    def wake(self) -> None:
        """End a `poll` that waits. From any thread."""
        with contextlib.suppress(OSError):  # full of wakes, or closed
            self._waker.send(b"\0")

    def freshen(self, origin: Origin) -> None:
        """Drop the idle connections that have been silent for too long, before they are used."""
        oldest = time.monotonic() - IDLE_SECONDS
        for wire in [wire for wire in origin.idle if wire.due < oldest]:
            self._drop(wire)

    def abandon(self) -> list[J]:
        """Break off every request; their jobs."""
        under_way = [*self._opening, *self._busy]
        for wire in under_way:
            self._drop(wire)
        return [wire.job for wire in under_way]

    def close(self, origins: list[Origin]) -> None:
        """Close every connection, those that are idle at `origins` included."""
        self.abandon()
        for origin in origins:
            for wire in origin.idle.copy():
                self._drop(wire)
        self._selector.close()
        self._waker.close()
        self._woken.close()

    # --- Opening: look the name up, connect, shake hands

    def _open(self, wire: _Wire[J]) -> None:
        origin = wire.origin
        self._opening[wire] = None
        if origin.waiting is not None:
            origin.waiting.append(wire)
        elif origin.addresses and time.monotonic() - origin.looked_up < ADDRESS_SECONDS:
            self._connect_first(wire)
        else:
            origin.waiting = [wire]
            threading.Thread(target=self._look_up, args=(origin,), daemon=True).start()

    def _look_up(self, origin: Origin) -> None:
        """In a thread: the resolver blocks, and a name server that is down would block us all."""
        try:
            found = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        self._looked_up.append((origin, found))
        self.wake()

    def _hear(self) -> None:
        while True:
            try:
                self._woken.recv(4096)
            except BlockingIOError:
                break
        while self._looked_up:
            origin, addresses = self._looked_up.popleft()
            origin.addresses = addresses
            origin.looked_up = time.monotonic()
            waiting, origin.waiting = origin.waiting or [], None
            for wire in waiting:
                if wire in self._opening:
                    self._connect_first(wire)

    def _connect_first(self, wire: _Wire[J]) -> None:
        # Begin anywhere, so that connections spread over an API's addresses.
        addresses = wire.origin.addresses
        first = len(self._opening) % len(addresses) if addresses else 0
        wire.addresses = iter(addresses[first:] + addresses[:first])
        self._connect(wire)

    def _connect(self, wire: _Wire[J]) -> None:
        for family, kind, protocol, _, address in wire.addresses:
            try:
                wire.sock = socket.socket(family, kind, protocol)
                wire.sock.setblocking(False)
                wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire.sock.connect(address)
            except BlockingIOError:
                pass
            except OSError:
                if wire.sock is not None:
                    wire.sock.close()
                continue
            self._watch(wire, self._connected, selectors.EVENT_WRITE)
            return
        wire.origin.addresses = []  # ask again: they may have changed
        self._fail(wire, CONNECTION_FAILED)

    def _connected(self, wire: _Wire[J]) -> None:
        self._selector.unregister(wire.sock)
        wire.watched = False
        if wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            wire.sock.close()
            self._connect(wire)
        elif wire.origin.secure:
            if self._tls is None:
                self._tls = self._make_tls()
            wire.sock = self._tls.wrap_socket(
                wire.sock,
                server_hostname=wire.origin.host,
                do_handshake_on_connect=False,
                session=wire.origin.session,  # resumed: without the certificate's arithmetic
            )
            self._watch(wire, self._shake_hands, _READ)
            self._shake_hands(wire)
        else:
            self._opened(wire)

    def _shake_hands(self, wire: _Wire[J]) -> None:
        try:
            wire.sock.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self._watch(wire, self._shake_hands, _READ_AND_WRITE)
        except OSError:  # a certificate that does not verify, too
            self._fail(wire, CONNECTION_FAILED)
        else:
            self._opened(wire)

    def _opened(self, wire: _Wire[J]) -> None:
        del self._opening[wire]
        self._watch(wire, self._receive, _READ)
        self._send(wire)

    # --- Busy: send, receive

    def _send(self, wire: _Wire[J]) -> None:
        wire.due = time.monotonic() + ANSWER_SECONDS
        wire.finished = False
        wire.received = b""
        wire.step = self._receive
        self._busy[wire] = None
        self._flush(wire)

    def _flush(self, wire: _Wire[J]) -> None:
        try:
            while wire.unsent:
                sent = wire.sock.send(wire.unsent)
                wire.unsent = wire.unsent[sent:]
        except _NOT_NOW:
            if wire.step != self._send_rest:
                self._watch(wire, self._send_rest, _READ_AND_WRITE)
        except OSError:
            self._fail(wire, CONNECTION_FAILED)

    def _send_rest(self, wire: _Wire[J]) -> None:
        self._flush(wire)
        if wire not in self._busy:
            return
        if not wire.unsent:
            self._watch(wire, self._receive, _READ)
        self._receive(wire)  # a refusal may come before everything was sent

    def _receive(self, wire: _Wire[J]) -> None:
        try:
            data = wire.sock.recv(RECEIVE_BYTES)
        except _NOT_NOW:
            return
        except OSError:
            data = b""
        if not data:
            self._end_of_stream(wire)
            return
        try:
            wire.parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(wire, MALFORMED_ANSWER)
            return
        if not wire.finished or wire.parser.get_status_code() >= 400:
            wire.received += data
        if wire.finished:
            self._answered(wire, wire.keep and not wire.unsent)
        elif len(wire.received) > MAX_ANSWER_BYTES:
            self._fail(wire, MALFORMED_ANSWER)

    def _end_of_stream(self, wire: _Wire[J]) -> None:
        if _ends_with_the_stream(wire.received):
            self._answered(wire, keep=False)
        else:
            self._fail(wire, CONNECTION_FAILED)

    def _answered(self, wire: _Wire[J], keep: bool) -> None:
        error_type = _error_type(wire.received) if wire.received else ""
        status = wire.parser.get_status_code()
        self._ended.append(Ended(wire.job, status, error_type=error_type))
        if not keep:
            self._drop(wire)
            return
        origin = wire.origin
        if origin.secure and origin.session is None:
            origin.session = wire.sock.session
        del self._busy[wire]
        wire.step = self._disturbed
        origin.idle.append(wire)

    # --- Idle

    def _disturbed(self, wire: _Wire[J]) -> None:
        """The server closed an idle connection, said what nobody asked for, or renewed a key."""
        try:
            wire.sock.recv(1)
        except _NOT_NOW:
            return
        except OSError:
            pass
        self._drop(wire)

    # --- The end

    def _fail(self, wire: _Wire[J], failure: str) -> None:
        lost = wire.reused and not wire.received and failure == CONNECTION_FAILED
        self._ended.append(Ended(wire.job, 0, failure, lost))
        self._drop(wire)

    def _drop(self, wire: _Wire[J]) -> None:
        self._opening.pop(wire, None)
        self._busy.pop(wire, None)
        if wire in wire.origin.idle:
            wire.origin.idle.remove(wire)
        if wire.watched:
            self._selector.unregister(wire.sock)
        if wire.sock is not None:
            wire.sock.close()

    def _watch(self, wire: _Wire[J], step: Step[J], events: int) -> None:
        """Have `step` called whenever the connection is ready for `events`."""
        wire.step = step
        if wire.watched:
            self._selector.modify(wire.sock, events, wire)
        else:
            self._selector.register(wire.sock, events, wire)
            wire.watched = True


_has_length = re.compile(rb"\r\n(content-length|transfer-encoding):", re.IGNORECASE).search


def _ends_with_the_stream(received: bytes) -> bool:
    """Whether these bytes are an answer that only the closing of the connection ends.

    RFC 9112 section 6.3: one without a length. Whatever else is cut off is no answer.
    """
    head, blank, _ = received.partition(b"\r\n\r\n")
    return bool(blank) and _has_length(head) is None


_find_error_type = re.compile(rb"\r\nx-amzn-errortype: *(\w+)", re.IGNORECASE).search


def _error_type(received: bytes) -> str:
    found = _find_error_type(received)
    return found[1].decode() if found else ""


def verifying_context() -> ssl.SSLContext:
    """TLS that trusts whom the SDK trusts, `AWS_CA_BUNDLE` included."""
    cafile = os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True)
    return ssl.create_default_context(cafile=cafile)
