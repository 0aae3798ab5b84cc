"""A stub of `@connections` with scripted responses that the local gateway never gives."""

import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

UNLIMITED = 10_000

Behaviour = int | str
"""A status, perhaps with an error type (`403 ForbiddenException`), or a key of RAW_RESPONSES."""

RAW_RESPONSES: dict[str, bytes] = {
    "close": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nfour",
    "garbage": b"this is not HTTP\r\n\r\n",
    "endless": b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 200_000,
    "no length": b"HTTP/1.0 200 OK\r\n\r\n",
}
"""Responses after which the connection is closed. `reset` and `hang` have no bytes."""

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


class Stub:
    """Responds to each connection id with its `behaviours` in turn, and repeats the last one.

    To a DELETE it responds with `delete_behaviours` or 204, to a GET with `get_behaviours` or 501.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.behaviours: dict[str, list[Behaviour]] = {}
        self.requests: list[tuple[str, bytes]] = []
        self.deletes: list[str] = []
        self.delete_behaviours: dict[str, Behaviour] = {}
        self.get_behaviours: dict[str, Behaviour] = {}
        self.headers: list[dict[str, str]] = []
        self.opened = 0
        self.resumed = 0
        self.max_concurrent = UNLIMITED  # further requests get 429
        self.concurrent = 0
        self.sockets: set[socket.socket] = set()

    def received(self, connection_id: str) -> list[bytes]:
        """Return the bodies that a connection id was sent, in order."""
        return [body for connection, body in self.requests if connection == connection_id]

    def counts(self) -> Counter[str]:
        """Return the number of requests to each connection id."""
        return Counter(connection for connection, _ in self.requests)

    def close_sockets(self) -> None:
        """Close every kept-alive connection, as servers do with idle ones."""
        for sock in self.sockets.copy():
            sock.shutdown(socket.SHUT_RDWR)

    def reset_sockets(self) -> None:
        """Close every kept-alive connection, and wait until their ends have seen a reset."""
        for sock in self.sockets.copy():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.shutdown(socket.SHUT_RDWR)
        while self.sockets:
            time.sleep(0.001)


@contextmanager
def stub(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Stub]:
    """Yield a stub that listens on a free port of 127.0.0.1; its endpoint is named `host`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def setup(self) -> None:
            if isinstance(self.request, ssl.SSLSocket):
                self.request.do_handshake()
                stubbed.resumed += bool(self.request.session_reused)
            super().setup()
            stubbed.opened += 1
            stubbed.sockets.add(self.request)

        def finish(self) -> None:
            stubbed.sockets.discard(self.request)
            super().finish()

        def do_DELETE(self) -> None:
            connection_id = unquote(self.path).rpartition("/")[2]
            stubbed.deletes.append(connection_id)
            self._behave(stubbed.delete_behaviours.get(connection_id, 204))

        def do_GET(self) -> None:
            connection_id = unquote(self.path).rpartition("/")[2]
            self._behave(stubbed.get_behaviours.get(connection_id, 501))

        def do_POST(self) -> None:
            connection_id = unquote(self.path).rpartition("/")[2]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                stubbed.requests.append((connection_id, body))
                stubbed.headers.append(dict(self.headers))
                script = stubbed.behaviours.get(connection_id, [200])
                behaviour = script.pop(0) if len(script) > 1 else script[0]
                stubbed.concurrent += 1
                throttled = stubbed.concurrent > stubbed.max_concurrent
            if stubbed.max_concurrent < UNLIMITED:
                stopped.wait(0.005)
            try:
                self._behave(429 if throttled else behaviour)
            finally:
                with lock:
                    stubbed.concurrent -= 1

        def _behave(self, behaviour: Behaviour) -> None:
            if behaviour == "chunked":
                self.wfile.write(CHUNKED)
            elif behaviour == "hang":
                stopped.wait(30)
                self.close_connection = True
            elif behaviour == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
            elif behaviour in RAW_RESPONSES:
                self.wfile.write(RAW_RESPONSES[str(behaviour)])
                self.close_connection = True
            else:
                status, _, error_type = str(behaviour).partition(" ")
                self.send_response(int(status))
                self.send_header("Content-Length", "0")
                if error_type:
                    self.send_header("x-amzn-ErrorType", error_type)
                self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024

        def get_request(self) -> Any:
            connection, address = super().get_request()
            if tls is not None:
                connection = tls.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
            return connection, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore errors: in some tests the client aborts."""

    lock = threading.Lock()
    stopped = threading.Event()
    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http" if tls is None else "https"
    stubbed = Stub(f"{scheme}://{host}:{server.server_address[1]}/prod")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stubbed
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
