"""Stop the gateway quietly on Ctrl-C and SIGTERM, whenever they come."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def until_interrupted(work: Coroutine[Any, Any, int]) -> int:
    """Run `work`, and cancel it at the first signal. Later signals have no effect.

    Returns the exit status of the work; if it was cancelled, the one that stands for the signal.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        if not received:
            received.append(number)
            loop.call_soon_threadsafe(task.cancel)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


async def wait_for_interrupt() -> None:
    """Wait until this task is cancelled, and let it go on from there."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
