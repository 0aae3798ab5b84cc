"""The stream of what happens in the gateway, which the console shows as it happens."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

MAX_PENDING_EVENTS = 5_000
"""The number of events that a slow watcher may fall behind before it misses the oldest ones."""
BATCH_SECONDS = 0.1
"""Events within this time are sent together."""
HEARTBEAT_SECONDS = 1.0

Event = dict[str, Any]


class EventStream:
    """Hands each event to every watcher. Costs next to nothing while nobody watches."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._ended = False

    def end(self) -> None:
        """End the stream for every watcher, since the gateway stops."""
        self._ended = True
        for watcher in self._watchers:
            watcher.wake()

    def notify(self, kind: str, **details: Any) -> None:
        """Tell every watcher that something happened just now."""
        for watcher in self._watchers:
            watcher.put({"kind": kind, "at": time.time_ns() // 1_000_000, **details})

    async def watch(self) -> AsyncIterator[list[Event]]:
        """Yield batches of the events from now on; an empty batch after a second without events.

        A watcher that falls too far behind misses the oldest events.
        """
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            while not self._ended:
                yield await watcher.take()
                await asyncio.sleep(BATCH_SECONDS)
        finally:
            self._watchers.discard(watcher)


class _Watcher:
    """The events that one watcher has yet to see."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MAX_PENDING_EVENTS)
        self._awake = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event; the oldest one is dropped if there are too many."""
        self._events.append(event)
        self.wake()

    def wake(self) -> None:
        """End a `take` that waits."""
        self._awake.set()

    async def take(self) -> list[Event]:
        """Wait for events, but no longer than a heartbeat, and return them."""
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._awake.wait()
        except TimeoutError:
            pass
        self._awake.clear()
        events = list(self._events)
        self._events.clear()
        return events
