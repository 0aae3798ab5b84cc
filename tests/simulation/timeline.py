"""A clock that moves only when a simulation lets it, and what is going to happen."""

import heapq
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import count
from random import Random
from typing import Any


def never() -> bool:
    """Return False: advance to the end."""
    return False


class Timeline:
    """The present moment, and events at later ones."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    def monotonic(self) -> float:
        """Return the present moment."""
        return self.now

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        """Let something happen `seconds` from now."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def advance(self, until: float, stop: Callable[[], bool] = never) -> None:
        """Let time pass until a moment, or until `stop` is true after an event."""
        while self._events and self._events[0][0] <= until:
            moment, _, event = heapq.heappop(self._events)
            self.now = max(self.now, moment)
            event()
            if stop():
                return
        self.now = max(self.now, until)


class SimulatedExecutor(Executor):
    """Runs each call at once, or at a later moment."""

    def __init__(self, timeline: Timeline, random: Random, delays: tuple[float, ...]) -> None:
        self._timeline = timeline
        self._random = random
        self._delays = delays

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = call(*arguments, **named)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        delay = self._random.choice(self._delays)
        if delay:
            self._timeline.after(delay, run)
        else:
            run()
        return future
