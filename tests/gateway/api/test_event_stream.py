"""The stream of events, as its watchers see it."""

import asyncio
from typing import Any

from gateway.api.event_stream import MAX_PENDING_EVENTS, EventStream


async def _watch(stream: EventStream, events: list[Any]) -> None:
    async for batch in stream.watch():
        events.extend(batch)


def test_every_watcher_gets_the_events_since_it_began_to_watch() -> None:
    async def run() -> None:
        stream = EventStream()
        stream.notify("unseen")
        seen: list[list[Any]] = [[], []]
        watchers = [asyncio.create_task(_watch(stream, events)) for events in seen]
        await asyncio.sleep(0)
        stream.notify("rest", status=200)
        stream.end()
        await asyncio.gather(*watchers)
        for events in seen:
            [event] = events
            assert (event["kind"], event["status"]) == ("rest", 200)
            assert event["at"] > 0

    asyncio.run(run())


def test_a_slow_watcher_misses_the_oldest_events() -> None:
    async def run() -> list[Any]:
        stream = EventStream()
        events: list[Any] = []
        watcher = asyncio.create_task(_watch(stream, events))
        await asyncio.sleep(0)
        for number in range(MAX_PENDING_EVENTS + 2):
            stream.notify("rest", number=number)
        stream.end()
        await watcher
        return events

    events = asyncio.run(run())
    assert len(events) == MAX_PENDING_EVENTS
    assert events[0]["number"] == 2
