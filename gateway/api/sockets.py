"""The open WebSockets: sending to one, closing one, and the limits that close it by itself."""

import asyncio
import contextlib
import time
from collections import deque

from starlette.websockets import WebSocket

from gateway.api.events import WebSocketContext

MAX_MESSAGE_BYTES = 128 * 1024
MAX_FRAME_BYTES = 32 * 1024
MAX_BUFFERED_BYTES = 1024 * 1024  # what a client that doesn't read may let pile up

CLOSING_SECONDS = 10.0  # for what is queued, the close frame and the client's answer to it

GOING_AWAY = (1001, "Going away")
CLOSED_BY_API = (1000, "Connection Closed Normally")


class BufferFull(Exception):
    """The client reads more slowly than it is sent to."""


class Socket:
    """One open connection. Times are in epoch seconds; the first reason to close is the one."""

    def __init__(
        self,
        websocket: WebSocket,
        context: WebSocketContext,
        idle_timeout: float,
        max_duration: float,
    ) -> None:
        self.context = context
        self.last_active = time.time()
        self.closing: tuple[int, str] | None = None
        self._websocket = websocket
        self._idle_timeout = idle_timeout
        self._end = self.last_active + max_duration
        self._frames: deque[str] = deque()
        self._buffered = 0
        self._changed = asyncio.Event()
        self._timer = asyncio.get_running_loop().call_later(
            min(idle_timeout, max_duration), self._check_age
        )

    def heard(self) -> None:
        """The client sent something; either direction keeps a connection from being idle."""
        self.last_active = time.time()

    def send(self, text: str) -> None:
        """Queue a text frame, in order. Raises BufferFull."""
        if self._buffered and self._buffered + len(text) > MAX_BUFFERED_BYTES:
            raise BufferFull
        self._frames.append(text)
        self._buffered += len(text)
        self.last_active = time.time()
        self._changed.set()

    def close(self, code: int, reason: str) -> None:
        """Close after what is queued."""
        if self.closing is None:
            self.closing = (code, reason)
            self._timer.cancel()
            # A client that reads nothing would keep its close frame from being sent.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CLOSING_SECONDS, self._websocket.state.abort)
            self._changed.set()

    async def write(self) -> None:
        """Write what is queued, until the socket is closed from either side."""
        # Starlette raises RuntimeError, or its server an OSError, once the client is gone.
        with contextlib.suppress(RuntimeError, OSError):
            while True:
                while self._frames:
                    text = self._frames.popleft()
                    await self._websocket.send_text(text)
                    self._buffered -= len(text)
                if self.closing is not None:
                    await self._websocket.close(*self.closing)
                    return
                self._changed.clear()
                await self._changed.wait()

    def release(self) -> None:
        """The connection has ended: nothing is due any more."""
        self._timer.cancel()

    def _check_age(self) -> None:
        now = time.time()
        due = min(self.last_active + self._idle_timeout, self._end)
        if now >= due:
            self.close(*GOING_AWAY)
        else:
            self._timer = asyncio.get_running_loop().call_later(due - now, self._check_age)
