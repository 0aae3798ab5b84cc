"""A TCP proxy that can slow down or drop its connections."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Proxy:
    """Forwards connections to `target` (host, port), as its `state` says.

    `up` forwards; `slow` reads and never answers; `down` closes each connection.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.state = "up"
        self.target: tuple[str, int] | None = None
        self.accepted = 0  # connections since the state changed
        self._pairs: set[socket.socket] = set()

    def lead_to(self, url: str) -> None:
        """Forward to the host and port of a URL."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.target = (parts.hostname, parts.port)

    def become(self, state: str) -> None:
        """Change the state to `up`, `slow` or `down`, and cut the open connections."""
        self.state = state
        self.accepted = 0
        for sock in self._pairs.copy():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def serve(self, client: socket.socket) -> None:
        """Serve one connection to its end."""
        with client, contextlib.suppress(OSError):
            self._pairs.add(client)
            if self.state == "slow":
                while client.recv(65536):
                    pass
            elif self.state == "up":
                assert self.target is not None
                with socket.create_connection(self.target) as server:
                    self._pairs.add(server)
                    back = threading.Thread(target=pump, args=(server, client), daemon=True)
                    back.start()
                    pump(client, server)
                    back.join()
                    self._pairs.discard(server)
            self._pairs.discard(client)


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until either side ends, then shut both down."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy() -> Iterator[Proxy]:
    """Run a proxy on a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        proxied = Proxy(listener.getsockname()[1])

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    proxied.accepted += 1
                    threading.Thread(target=proxied.serve, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield proxied
        proxied.become("down")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
