"""What sending needs of the operating system: a clock, sockets, a selector, names, threads."""

import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple


def run_in_thread(work: Callable[..., None], *arguments: object) -> None:
    """Run `work` in a thread that does not keep the process alive."""
    threading.Thread(target=work, args=arguments, daemon=True).start()


class System(NamedTuple):
    """The parts of the operating system that a sender uses. A simulation hands in models."""

    monotonic: Callable[[], float] = time.monotonic
    create_selector: Callable[[], Any] = selectors.DefaultSelector
    create_socket: Callable[..., Any] = socket.socket
    create_socket_pair: Callable[[], tuple[Any, Any]] = socket.socketpair
    resolve: Callable[..., list[Any]] = socket.getaddrinfo
    run_in_thread: Callable[..., None] = run_in_thread


SYSTEM = System()
