"""Keep Ctrl-C from the processes that the gateway starts: they end when the gateway ends them.

A terminal sends it to every process of a command. This module loads no asyncio, which would make
each execution environment start 30 ms later.
"""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def not_inherited() -> Iterator[None]:
    """Let no Ctrl-C reach a process that is started meanwhile, not even before it can ignore it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def ignore() -> None:
    """Ignore Ctrl-C in a process that was started so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
