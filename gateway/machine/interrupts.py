"""Ctrl-C ends the gateway, quietly, at whatever moment it comes."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


async def until_interrupted(work: Coroutine[Any, Any, int]) -> int:
    """Do `work`, and cancel it at the first signal; its exit status, or the signal's.

    Later signals change nothing, since it is stopping already.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        if not received:
            received.append(number)
            loop.call_soon_threadsafe(task.cancel)

    for number in STOPPING:
        signal.signal(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]
    finally:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


async def interrupted() -> None:
    """Wait until this work is interrupted, and let it end as it likes."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
