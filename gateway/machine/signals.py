"""Keep Ctrl-C from the gateway's child processes, since the gateway itself ends them.

A terminal sends Ctrl-C to every process of a command. This module must not load asyncio, which
would delay the start of each execution environment by 30 ms.
"""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Start processes with Ctrl-C blocked, until they call `ignore_interrupts`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def ignore_interrupts() -> None:
    """Ignore Ctrl-C in a process that was started with it blocked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
