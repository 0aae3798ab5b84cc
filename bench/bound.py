"""Bounds: the longest time that a benchmark may take, however slow the machine is."""

import functools
import signal
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bench.quick_mode import full_or_quick

CLEAN_UP_SECONDS = 120
"""The time that a benchmark has to end its processes before it is ended again."""

P = ParamSpec("P")
R = TypeVar("R")

BOUNDS: dict[str, float] = {}
"""The bound of each benchmark, by its module, in seconds."""


class BoundReached(SystemExit):
    """A benchmark has reached its bound, and has ended."""


def bounded(minutes: float, *, quick: float = 5) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that gives a benchmark's `main` a bound, to be called in the main thread.

    Args:
        minutes: The bound: several times what it takes on a machine of two slow cores.
        quick: The bound in quick mode.

    Raises (from `main`):
        BoundReached: The bound is reached. What has been printed by then stays.
    """
    seconds = full_or_quick(minutes, quick) * 60

    def decorate(main: Callable[P, R]) -> Callable[P, R]:
        BOUNDS[main.__module__] = seconds

        @functools.wraps(main)
        def within_bound(*arguments: P.args, **named: P.kwargs) -> R:
            def end(*_: object) -> None:
                raise BoundReached(
                    f"{main.__module__} has ended: it reached its bound of {seconds / 60:g} minutes"
                )

            before = signal.signal(signal.SIGALRM, end)
            signal.setitimer(signal.ITIMER_REAL, seconds, CLEAN_UP_SECONDS)
            try:
                return main(*arguments, **named)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

        return within_bound

    return decorate
