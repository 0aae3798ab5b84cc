"""How modules and objects that stay are loaded sooner."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Look for no garbage meanwhile, and never again among what is there at the end.

    Loading the SDK makes a hundred thousand objects, and none is garbage: the collector's search
    is an eighth of the time, and would be part of each later one.
    https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.disable()
    try:
        yield
        gc.freeze()  # not what a failure leaves: that is garbage
    finally:
        gc.enable()
