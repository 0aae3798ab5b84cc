"""Keeps what functions print, thousands of lines of metrics, out of a benchmark's output."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stdout_discarded() -> Iterator[None]:
    """Discard the standard output of this process and of those that it starts.

    Standard error stays, so that errors are seen.
    """
    sys.stdout.flush()
    terminal = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(terminal, 1)
        os.close(terminal)
