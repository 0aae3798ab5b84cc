"""Faster imports by pausing garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Disable the garbage collector, then exempt what was created from later collections.

    The AWS SDK creates a hundred thousand objects as it loads, and keeps them all. Without this,
    an eighth of that time goes into looking for garbage among them, and every later collection
    looks again. https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.disable()
    try:
        yield
        gc.freeze()  # not after an exception: what it leaves behind is garbage
    finally:
        gc.enable()
