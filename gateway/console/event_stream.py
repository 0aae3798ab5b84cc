"""What happens in the gateway, as it happens, for whoever watches: the console."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

KEPT = 5_000  # events that a slow watcher may be behind
PAUSE_SECONDS = 0.1  # events within it travel together

Event = dict[str, Any]


class Feed:
    """Hands each event to every watcher. Costs next to nothing while nobody watches."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._closed = False

    def close(self) -> None:
        """Let every watcher go: the gateway stops."""
        self._closed = True
        for watcher in self._watchers:
            watcher.wake()

    def tell(self, kind: str, **details: Any) -> None:
        """Something happened, just now."""
        for watcher in self._watchers:
            watcher.put({"kind": kind, "at": time.time_ns() // 1_000_000, **details})

    async def watch(self) -> AsyncIterator[list[Event]]:
        """What happens from now on, a few events at a time; nothing is an empty list a second.

        Who falls behind by more than 5,000 events misses the oldest.
        """
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            while not self._closed:
                yield await watcher.take()
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._watchers.discard(watcher)


class _Watcher:
    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._come = asyncio.Event()

    def put(self, event: Event) -> None:
        self._events.append(event)
        self.wake()

    def wake(self) -> None:
        self._come.set()

    async def take(self) -> list[Event]:
        try:
            async with asyncio.timeout(1):
                await self._come.wait()
        except TimeoutError:
            pass
        self._come.clear()
        events = list(self._events)
        self._events.clear()
        return events
