"""An HTTP/1.1 client for `@connections`: thousands of requests a second from one thread.

The SDK spends 0.6 to 0.9 ms of processor time on a request; an asyncio protocol, a tenth of that.
Here a request costs one write and one read of a non-blocking socket. Python's `ssl` does TLS and
httptools parses responses; this module schedules them (decision 0004).
"""

import contextlib
import os
import selectors
import socket
import ssl
from collections.abc import Callable
from typing import Generic, NamedTuple

import httptools
from botocore.httpsession import get_cert_path

from chalicelib.delivery.http_connection import HttpConnection, OnReady, Origin, TaskT
from chalicelib.delivery.resolver import Address, Resolver
from chalicelib.delivery.system import SYSTEM, System

RECEIVE_BYTES = 16 * 1024  # a TLS record, so that nothing stays behind in the TLS layer
MAX_RESPONSE_BYTES = 64 * 1024

TIMEOUT = "timeout"
CONNECTION_FAILED = "connection_failed"
MALFORMED_RESPONSE = "malformed_answer"

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_READ = selectors.EVENT_READ
_READ_AND_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE


class HttpTimeouts(NamedTuple):
    """The time-outs of a transport, in seconds."""

    connect: float = 2.0
    """For name resolution, TCP and TLS together."""

    response: float = 2.0

    addresses: float = 60.0
    """The time to use resolved addresses: the TTL of API Gateway's own DNS records."""

    idle: float = 60.0
    """After this long a peer may have closed a connection unnoticed, as in a frozen Lambda."""


DEFAULT_TIMEOUTS = HttpTimeouts()


class Completion(NamedTuple, Generic[TaskT]):
    """The end of the request of a task: a `status`, or status 0 and a `failure`.

    `resend`: a kept-alive connection broke before the first byte of the response. The server had
    closed it, most likely before it saw the request, so the request may be sent again at once.
    `error_type` is the name that API Gateway gave an error.
    """

    task: TaskT
    status: int
    failure: str = ""
    resend: bool = False
    error_type: str = ""


class Transport(Generic[TaskT]):
    """Connections to any number of origins.

    Only one thread at a time may use it; any thread may call `wake`.
    """

    def __init__(
        self,
        create_tls_context: Callable[[], ssl.SSLContext],
        *,
        timeouts: HttpTimeouts = DEFAULT_TIMEOUTS,
        system: System = SYSTEM,
    ) -> None:
        """Create a transport without connections.

        `create_tls_context` is called when the first https origin is used.
        """
        self._monotonic = system.monotonic
        self._create_socket = system.create_socket
        self._create_tls_context = create_tls_context
        self._tls_context: ssl.SSLContext | None = None
        self._connect_seconds = timeouts.connect
        self._response_seconds = timeouts.response
        self._idle_seconds = timeouts.idle
        self._selector = system.create_selector()
        self._wake_sender, self._wake_receiver = system.create_socket_pair()
        for end in (self._wake_sender, self._wake_receiver):
            end.setblocking(False)
        self._selector.register(self._wake_receiver, _READ)
        self._resolver: Resolver[HttpConnection[TaskT]] = Resolver(
            on_resolved=self.wake, ttl_seconds=timeouts.addresses, system=system
        )
        # Both in the order in which they time out, since each kind has one time-out.
        self._opening: dict[HttpConnection[TaskT], None] = {}
        self._busy: dict[HttpConnection[TaskT], None] = {}
        self._completions: list[Completion[TaskT]] = []

    def start(self, origin: Origin, task: TaskT, request: bytes) -> None:
        """Send `request` for `task`, on an idle connection or a new one.

        `poll` returns its completion.
        """
        if not origin.idle:
            timeout_at = self._monotonic() + self._connect_seconds
            self._open(HttpConnection(origin, task, request, timeout_at))
            return
        connection = origin.idle.pop()  # the last one used is the likeliest to be open
        connection.task, connection.unsent, connection.reused = task, request, True
        self._send(connection)

    def poll(self, seconds: float) -> list[Completion[TaskT]]:
        """Wait for an event for at most `seconds`; return the completions since the last call.

        Does not wait if there are completions already: `start` has some when it fails at once.
        """
        for key, _ in self._selector.select(0.0 if self._completions else max(0.0, seconds)):
            if key.data is None:
                self._on_wake()
            else:
                key.data.on_ready(key.data)
        now = self._monotonic()
        for connections in (self._opening, self._busy):
            while connections and (first := next(iter(connections))).timeout_at <= now:
                self._fail(first, TIMEOUT)
        return self._take_completions()

    def _take_completions(self) -> list[Completion[TaskT]]:
        completions, self._completions = self._completions, []
        return completions

    def next_timeout(self) -> float:
        """Return when the next request times out, on the monotonic clock; or infinity."""
        waiting = (self._opening, self._busy)
        timeouts = (next(iter(connections)).timeout_at for connections in waiting if connections)
        return min(timeouts, default=float("inf"))

    def wake(self) -> None:
        """End a `poll` that waits. Any thread may call this."""
        with contextlib.suppress(OSError):  # the buffer is full of wake-ups, or it is closed
            self._wake_sender.send(b"\0")

    def close_expired(self, origin: Origin) -> None:
        """Close the connections that have been idle for too long, before they are used."""
        oldest = self._monotonic() - self._idle_seconds
        for connection in [one for one in origin.idle if one.timeout_at < oldest]:
            self._close(connection)

    def cancel_all(self) -> tuple[list[Completion[TaskT]], list[TaskT]]:
        """Cancel every request whose response has not arrived; send nothing more.

        Returns the completions since the last `poll`, and the tasks of the cancelled requests.
        """
        for key, _ in self._selector.select(0.0) if self._busy else ():
            if key.data in self._busy and not key.data.unsent:
                self._receive(key.data)
        cancelled = [*self._opening, *self._busy]
        for connection in cancelled:
            self._close(connection)
        return self._take_completions(), [connection.task for connection in cancelled]

    def close(self, origins: list[Origin]) -> None:
        """Close every connection, the idle ones of `origins` too."""
        self.cancel_all()
        for origin in origins:
            for connection in origin.idle.copy():
                self._close(connection)
        self._selector.close()
        self._wake_sender.close()
        self._wake_receiver.close()

    # --- Opening: resolve the name, connect, do the TLS handshake

    def _open(self, connection: HttpConnection[TaskT]) -> None:
        self._opening[connection] = None
        host, port = connection.origin.host, connection.origin.port
        addresses = self._resolver.cached(host, port)
        if addresses:
            self._connect_to_any(connection, addresses)
        else:
            self._resolver.resolve(host, port, connection)

    def _on_wake(self) -> None:
        while True:
            try:
                self._wake_receiver.recv(4096)
            except BlockingIOError:
                break
        for connection, addresses in self._resolver.take_resolved():
            if connection in self._opening:  # it may have timed out, or been cancelled
                self._connect_to_any(connection, addresses)

    def _connect_to_any(self, connection: HttpConnection[TaskT], addresses: list[Address]) -> None:
        # Start anywhere in the list, so that connections spread over an API's addresses.
        first = len(self._opening) % len(addresses) if addresses else 0
        connection.addresses = iter(addresses[first:] + addresses[:first])
        self._connect(connection)

    def _connect(self, connection: HttpConnection[TaskT]) -> None:
        for family, kind, protocol, _, address in connection.addresses:
            try:
                connection.sock = self._create_socket(family, kind, protocol)
                connection.sock.setblocking(False)
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sock.connect(address)
            except BlockingIOError:
                pass
            except OSError:
                if connection.sock is not None:
                    connection.sock.close()
                continue
            self._watch(connection, self._on_connected, selectors.EVENT_WRITE)
            return
        # The addresses may have changed.
        self._resolver.forget(connection.origin.host, connection.origin.port)
        self._fail(connection, CONNECTION_FAILED)

    def _on_connected(self, connection: HttpConnection[TaskT]) -> None:
        self._selector.unregister(connection.sock)
        connection.watched = False
        if connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            connection.sock.close()
            self._connect(connection)
        elif connection.origin.secure:
            self._start_tls(connection)
        else:
            self._on_opened(connection)

    def _start_tls(self, connection: HttpConnection[TaskT]) -> None:
        if self._tls_context is None:
            self._tls_context = self._create_tls_context()
        connection.sock = self._tls_context.wrap_socket(
            connection.sock,
            server_hostname=connection.origin.host,
            do_handshake_on_connect=False,
            session=connection.origin.session,  # resumption saves the certificate's arithmetic
        )
        self._watch(connection, self._shake_hands, _READ)
        self._shake_hands(connection)

    def _shake_hands(self, connection: HttpConnection[TaskT]) -> None:
        try:
            connection.sock.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self._watch(connection, self._shake_hands, _READ_AND_WRITE)
        except OSError:  # also when the certificate is not trusted
            self._fail(connection, CONNECTION_FAILED)
        else:
            self._on_opened(connection)

    def _on_opened(self, connection: HttpConnection[TaskT]) -> None:
        del self._opening[connection]
        self._watch(connection, self._receive, _READ)
        self._send(connection)

    # --- Busy: send the request, receive the response

    def _send(self, connection: HttpConnection[TaskT]) -> None:
        connection.timeout_at = self._monotonic() + self._response_seconds
        connection.response_complete = False
        connection.received = b""
        connection.on_ready = self._receive
        self._busy[connection] = None
        self._flush(connection)

    def _flush(self, connection: HttpConnection[TaskT]) -> None:
        try:
            while connection.unsent:
                sent = connection.sock.send(connection.unsent)
                connection.unsent = connection.unsent[sent:]
        except _WOULD_BLOCK:
            if connection.on_ready != self._send_rest:
                self._watch(connection, self._send_rest, _READ_AND_WRITE)
        except OSError:
            self._fail(connection, CONNECTION_FAILED)

    def _send_rest(self, connection: HttpConnection[TaskT]) -> None:
        self._flush(connection)
        if connection not in self._busy:
            return
        if not connection.unsent:
            self._watch(connection, self._receive, _READ)
        self._receive(connection)  # an error response may arrive before the request is sent

    def _receive(self, connection: HttpConnection[TaskT]) -> None:
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
        except _WOULD_BLOCK:
            return
        except OSError:
            data = b""
        if not data:
            self._on_end_of_stream(connection)
            return
        try:
            connection.parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(connection, MALFORMED_RESPONSE)
            return
        complete = connection.response_complete
        if not complete or connection.parser.get_status_code() >= 400:
            connection.received += data
        if complete:
            self._complete(connection, connection.keep_alive and not connection.unsent)
        elif len(connection.received) > MAX_RESPONSE_BYTES:
            self._fail(connection, MALFORMED_RESPONSE)

    def _on_end_of_stream(self, connection: HttpConnection[TaskT]) -> None:
        if connection.ends_with_stream():
            self._complete(connection, keep_alive=False)
        else:
            self._fail(connection, CONNECTION_FAILED)

    def _complete(self, connection: HttpConnection[TaskT], keep_alive: bool) -> None:
        error_type = connection.error_type() if connection.received else ""
        status = connection.parser.get_status_code()
        self._completions.append(Completion(connection.task, status, error_type=error_type))
        if not keep_alive:
            self._close(connection)
            return
        origin = connection.origin
        if origin.secure and origin.session is None:
            origin.session = connection.sock.session
        del self._busy[connection]
        connection.on_ready = self._on_idle_readable
        origin.idle.append(connection)

    # --- Idle

    def _on_idle_readable(self, connection: HttpConnection[TaskT]) -> None:
        """Close an idle connection that its server closed, or on which it sent data unasked.

        A TLS record without data, such as a session ticket, leaves the connection open.
        """
        try:
            connection.sock.recv(1)
        except _WOULD_BLOCK:
            return
        except OSError:
            pass
        self._close(connection)

    # --- Failure and close

    def _fail(self, connection: HttpConnection[TaskT], failure: str) -> None:
        resend = connection.reused and not connection.received and failure == CONNECTION_FAILED
        self._completions.append(Completion(connection.task, 0, failure, resend))
        self._close(connection)

    def _close(self, connection: HttpConnection[TaskT]) -> None:
        self._opening.pop(connection, None)
        self._busy.pop(connection, None)
        if connection in connection.origin.idle:
            connection.origin.idle.remove(connection)
        if connection.watched:
            self._selector.unregister(connection.sock)
        if connection.sock is not None:
            connection.sock.close()

    def _watch(
        self, connection: HttpConnection[TaskT], on_ready: OnReady[TaskT], events: int
    ) -> None:
        """Call `on_ready` whenever the connection is ready for `events`."""
        connection.on_ready = on_ready
        if connection.watched:
            self._selector.modify(connection.sock, events, connection)
        else:
            self._selector.register(connection.sock, events, connection)
            connection.watched = True


def create_trusted_context() -> ssl.SSLContext:
    """Return a TLS context with the SDK's trusted authorities, `AWS_CA_BUNDLE` included."""
    cafile = os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True)
    return ssl.create_default_context(cafile=cafile)
