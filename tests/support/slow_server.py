"""A server that answers slowly, too much or never, over plain sockets on the loopback address."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL_SECONDS = 0.02  # between two bytes: each comes long before a time-out for one packet
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Say = Callable[[bytes], None]
Behaviour = Callable[[Say, threading.Event], None]
"""Answers a request with `say`, until the event is set or the client has left."""


def silence(say: Say, stop: threading.Event) -> None:
    stop.wait()


def head_byte_by_byte(say: Say, stop: threading.Event) -> None:
    _drip(say, stop, HEAD + b"X-Endless: ")


def body_byte_by_byte(say: Say, stop: threading.Event) -> None:
    say(HEAD + b"Content-Length: 200000\r\n\r\n")
    _drip(say, stop, b"")


def chunks_byte_by_byte(say: Say, stop: threading.Event) -> None:
    say(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    _drip(say, stop, b"1;")


def body_without_end(say: Say, stop: threading.Event) -> None:
    say(HEAD + b"\r\n")
    while not stop.is_set():
        say(b" " * 65536)


def _drip(say: Say, stop: threading.Event, begin: bytes) -> None:
    for byte in begin:
        say(bytes([byte]))
        stop.wait(INTERVAL_SECONDS)
    while not stop.wait(INTERVAL_SECONDS):
        say(b" ")


@contextmanager
def slow_server(behaviour: Behaviour) -> Iterator[str]:
    """Run a server that answers each connection with `behaviour`; yield its address."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                behaviour(client.sendall, stop)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    client, _ = listener.accept()
                    answers.append(threading.Thread(target=answer, args=(client,)))
                    answers[-1].start()

        answers: list[threading.Thread] = []
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            for one in (thread, *answers):
                one.join()
