"""A stand-in for `@connections` that answers as it is told: what the local gateway never does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

Behaviour = int | str
"""A status to answer with, or `reset`, `hang`, `half` or `garbage`."""


class Stub:
    """Answers each connection's requests with its `behaviours` in turn, the last one for ever."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.behaviours: dict[str, list[Behaviour]] = {}
        self.requests: list[tuple[str, bytes]] = []
        self.headers: list[dict[str, str]] = []

    def received(self, connection_id: str) -> list[bytes]:
        return [body for connection, body in self.requests if connection == connection_id]


@contextmanager
def stub() -> Iterator[Stub]:
    """A stub that listens on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            connection_id = unquote(self.path).rpartition("/")[2]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                stubbed.requests.append((connection_id, body))
                stubbed.headers.append(dict(self.headers))
                turns = stubbed.behaviours.get(connection_id, [200])
                behaviour = turns.pop(0) if len(turns) > 1 else turns[0]
            self._behave(behaviour)

        def _behave(self, behaviour: Behaviour) -> None:
            match behaviour:
                case int():
                    self.send_response(behaviour)
                    self.send_header("Content-Length", "0")
                    if behaviour == 410:
                        self.send_header("x-amzn-ErrorType", "GoneException")
                    self.end_headers()
                    return
                case "half":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
                case "garbage":
                    self.wfile.write(b"this is no HTTP\r\n\r\n")
                case "hang":
                    stopped.wait(30)
            self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests are quiet."""

    lock = threading.Lock()
    stopped = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stubbed = Stub(f"http://127.0.0.1:{server.server_address[1]}/prod")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stubbed
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
