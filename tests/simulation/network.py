"""Models of sockets, a selector and servers. Time passes in `select` alone."""

import errno
import socket
from collections import deque
from collections.abc import Callable
from random import Random
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, NamedTuple

from chalicelib.delivery.system import System
from tests.simulation.timeline import Timeline

RESET = None
"""Stands among the chunks of a socket for a reset."""

SOON = (0.0, 0.001, 0.01, 0.1, 0.4)
LATE = (*SOON, 1.0, 1.9, 2.1, 5.0)
"""The seconds until something happens, around the time-outs of 2 s."""

REASONS = {200: "OK", 410: "Gone", 429: "Too Many Requests"}


class SimulatedSocket:
    """A socket at the sender's side."""

    def __init__(self, network: "Network") -> None:
        self.open = True
        self.connected = False
        self.error = 0
        self.peer_has_closed = False
        self.blocked = False
        self.partner: SimulatedSocket | None = None
        self.incoming: deque[bytes | None] = deque()
        """Chunks to receive; `b""` is the end of the stream."""
        self.sent = b""
        self._network = network

    # --- What the sender calls

    def setblocking(self, flag: bool) -> None:
        """Do nothing: it never blocks."""

    def setsockopt(self, *_: int) -> None:
        """Do nothing: no option matters here."""

    def getsockopt(self, *_: int) -> int:
        return self.error

    def connect(self, address: tuple[str, int]) -> None:
        self._network.connect(self, address[0])
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        assert self.open
        if self.partner is not None:
            self.partner.incoming.append(data)
            return len(data)
        if RESET in self.incoming:
            raise ConnectionResetError
        if self.blocked:
            raise BlockingIOError
        return self._network.send(self, data)

    def recv(self, size: int) -> bytes:
        assert self.open
        if not self.incoming:
            raise BlockingIOError
        chunk = self.incoming[0]
        if chunk is RESET:
            raise ConnectionResetError
        if chunk:  # the end of a stream stays
            self.incoming.popleft()
        return chunk

    def close(self) -> None:
        self.open = False

    def is_ready(self, events: int) -> bool:
        """Return whether the selector reports it."""
        if not self.connected:
            return bool(self.error)
        writable = events & EVENT_WRITE and not self.blocked
        return bool(writable or (events & EVENT_READ and self.incoming))


class Key(NamedTuple):
    """What `select` returns for a socket."""

    fileobj: SimulatedSocket
    data: Any


class SimulatedSelector:
    """A level-triggered selector that reports ready sockets in any order."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self._registered: dict[SimulatedSocket, tuple[int, Any]] = {}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def register(self, sock: SimulatedSocket, events: int, data: Any = None) -> None:
        assert sock not in self._registered
        self._registered[sock] = events, data

    def modify(self, sock: SimulatedSocket, events: int, data: Any = None) -> None:
        assert sock in self._registered
        self._registered[sock] = events, data

    def unregister(self, sock: SimulatedSocket) -> None:
        del self._registered[sock]

    def select(self, timeout: float) -> list[tuple[Key, int]]:
        ready = self._ready()
        if timeout > 0 and not ready:
            until = self._network.timeline.now + timeout
            self._network.on_wait(until)
            self._network.timeline.advance(until, stop=lambda: bool(self._ready()))
            ready = self._ready()
        self._network.random.shuffle(ready)
        return ready

    def _ready(self) -> list[tuple[Key, int]]:
        return [
            (Key(sock, data), events)
            for sock, (events, data) in self._registered.items()
            if sock.is_ready(events)
        ]


class Network:
    """All sockets, and the servers at their other ends, which do what `random` says."""

    def __init__(self, timeline: Timeline, random: Random) -> None:
        self.timeline = timeline
        self.random = random
        self.sockets: list[SimulatedSocket] = []
        self.requests: list[tuple[str, bytes]] = []
        """The connection id and the body of each request that a server received."""
        self.answers: dict[bytes, list[int]] = {}
        """The statuses that servers answered, by the body of the request."""
        self.happened: set[str] = set()
        self.on_wait: Callable[[float], None] = lambda _: None
        self.on_send: Callable[[], None] = lambda: None

    def system(self) -> System:
        """Return this network and its clock as a sender's operating system."""
        return System(
            monotonic=self.timeline.monotonic,
            create_selector=lambda: SimulatedSelector(self),
            create_socket=self._create_socket,
            create_socket_pair=self._create_pair,
            resolve=self._resolve,
            run_in_thread=self._run_in_thread,
        )

    def open_sockets(self) -> int:
        """Return the number of open sockets, without pairs."""
        return sum(sock.open and sock.partner is None for sock in self.sockets)

    def _create_socket(self, *_: int) -> SimulatedSocket:
        if self._chance(0.02):
            self.happened.add("no file descriptor")
            raise OSError(errno.EMFILE, "no file descriptors are left")
        sock = SimulatedSocket(self)
        self.sockets.append(sock)
        return sock

    def _create_pair(self) -> tuple[SimulatedSocket, SimulatedSocket]:
        sender, receiver = SimulatedSocket(self), SimulatedSocket(self)
        sender.partner, receiver.partner = receiver, sender
        receiver.connected = True
        return sender, receiver

    def _resolve(self, host: str, port: int, **_: object) -> list[Any]:
        if self._chance(0.05):
            self.happened.add("an unknown name")
            raise OSError("unknown name")
        number = self.random.randint(1, 2)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))] * number

    def _run_in_thread(self, work: Callable[..., None], *arguments: object) -> None:
        self.timeline.after(self.random.choice(LATE), lambda: work(*arguments))

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    # --- The servers

    def connect(self, sock: SimulatedSocket, host: str) -> None:
        """Let a connection open late, be refused, or never open."""
        if self._chance(0.05):
            self.happened.add("refused at once")
            raise ConnectionRefusedError

        def opened() -> None:
            sock.connected = True

        def refused() -> None:
            self.happened.add("refused")
            sock.error = errno.ECONNREFUSED

        outcome = refused if host == "refusing" or self._chance(0.05) else opened
        self.timeline.after(self.random.choice(LATE if self._chance(0.1) else SOON), outcome)

    def send(self, sock: SimulatedSocket, data: bytes) -> int:
        """Take the bytes of a request, perhaps not all at once; return their number."""
        self.on_send()
        taken = len(data)
        if self._chance(0.05):
            self.happened.add("a full buffer")
            taken = self.random.randrange(1, taken + 1)
            sock.blocked = True
            self.timeline.after(self.random.choice(SOON), lambda: setattr(sock, "blocked", False))
        sock.sent += data[:taken]
        head, blank_line, body = sock.sent.partition(b"\r\n\r\n")
        if blank_line and len(body) == int(head.rpartition(b"content-length: ")[2]):
            sock.sent = b""
            line, host, *_ = head.decode().split("\r\n")
            self._serve(sock, line, host.removeprefix("host: "), body)
        return taken

    def _serve(self, sock: SimulatedSocket, line: str, host: str, body: bytes) -> None:
        if sock.peer_has_closed:
            return  # the request is lost; what follows is a reset, which is there already
        connection_id = line.split()[1].rpartition("/")[2]
        self.requests.append((connection_id, body))
        delay = self.random.choice(LATE if self._chance(0.2) else SOON)
        if host != "silent":
            self.timeline.after(delay, lambda: self._respond(sock, body))

    def _respond(self, sock: SimulatedSocket, body: bytes) -> None:
        kind = self.random.choices(
            ["answer", "split", "close", "no length", "reset", "end", "half", "garbage", "hang"],
            [60, 8, 6, 3, 6, 4, 4, 2, 4],
        )[0]
        self.happened.add(kind)
        status = self.random.choices([200, 410, 403, 400, 429, 500, 503], [60, 6, 4, 3, 12, 5, 5])[
            0
        ]
        answer = f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n".encode()
        rest = b"Content-Length: 2\r\n\r\n{}"
        match kind:
            case "reset":
                sock.incoming.append(RESET)
            case "end":
                self._end(sock)
            case "half":
                sock.incoming.append(answer)
                self._end(sock)
            case "garbage":
                sock.incoming.append(b"this is not HTTP\r\n\r\n")
            case "hang":
                pass
            case _:
                self.answers.setdefault(body, []).append(status)
                self._answer(sock, kind, answer, rest)

    def _answer(self, sock: SimulatedSocket, kind: str, answer: bytes, rest: bytes) -> None:
        if kind == "close":
            sock.incoming.append(answer + b"Connection: close\r\n" + rest)
            self._end(sock)
        elif kind == "no length":
            sock.incoming.append(answer + b"\r\n{}")
            self._end(sock)
        elif kind == "split":
            sock.incoming.append(answer)
            delay = self.random.choice(SOON)
            self.timeline.after(delay, lambda: sock.incoming.append(rest))
        else:
            sock.incoming.append(answer + rest)
            if self._chance(0.2):
                self.timeline.after(self.random.choice(LATE), lambda: self._drop(sock))

    def _drop(self, sock: SimulatedSocket) -> None:
        """End a kept-alive connection, which the sender may be using again."""
        if self._chance(0.5):
            self.happened.add("an idle socket was reset")
            sock.incoming.append(RESET)
        else:
            self._end(sock)

    def _end(self, sock: SimulatedSocket) -> None:
        sock.peer_has_closed = True
        sock.incoming.append(b"")
