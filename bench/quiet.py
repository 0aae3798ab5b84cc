"""What functions print, ten thousand lines of metrics, is no result of a benchmark."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def functions_unheard() -> Iterator[None]:
    """What this process and those that it starts print goes nowhere, but for errors."""
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
