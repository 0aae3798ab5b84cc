"""The open WebSockets: send to one, close one, and the limits after which one is closed."""

import asyncio
import contextlib
import time
from collections import deque

from starlette.websockets import WebSocket

from gateway.api.events import WebSocketContext

MAX_MESSAGE_BYTES = 128 * 1024
MAX_FRAME_BYTES = 32 * 1024
MAX_BUFFERED_BYTES = 1024 * 1024
"""The limit of the queue for a client that doesn't read."""

GOING_AWAY = (1001, "Going away")
CLOSED_BY_API = (1000, "Connection Closed Normally")


class BufferFull(Exception):
    """The client reads more slowly than messages are sent to it."""


class Socket:
    """One open connection.

    Args:
        idle_timeout: Seconds without a message in either direction until it is closed.
        max_duration: Seconds until it is closed, however active it is.
        closing_timeout: Seconds that a client has to read its queue and answer the close frame.
    """

    def __init__(
        self,
        websocket: WebSocket,
        context: WebSocketContext,
        *,
        idle_timeout: float,
        max_duration: float,
        closing_timeout: float,
    ) -> None:
        self.context = context
        self.last_active = time.time()
        self.closing: tuple[int, str] | None = None
        """The code and the reason, once it is being closed from our side."""
        self._websocket = websocket
        self._idle_timeout = idle_timeout
        self._closing_timeout = closing_timeout
        self._expires_at = self.last_active + max_duration
        self._frames: deque[str] = deque()
        self._buffered = 0
        self._changed = asyncio.Event()
        self._timer = asyncio.get_running_loop().call_later(
            min(idle_timeout, max_duration), self._check_age
        )

    def record_activity(self) -> None:
        """Restart the idle timeout, since a frame was sent or received."""
        self.last_active = time.time()

    def send(self, text: str) -> None:
        """Queue a text frame. Raises BufferFull."""
        if self._buffered and self._buffered + len(text) > MAX_BUFFERED_BYTES:
            raise BufferFull
        self._frames.append(text)
        self._buffered += len(text)
        self.record_activity()
        self._changed.set()

    def close(self, code: int, reason: str) -> None:
        """Close after the queued frames. Later calls change neither the code nor the reason."""
        if self.closing is None:
            self.closing = (code, reason)
            self._timer.cancel()
            # A client that never reads would keep its close frame from being sent.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._closing_timeout, self._websocket.state.abort)
            self._changed.set()

    async def write(self) -> None:
        """Write the queued frames until either side closes the socket."""
        # Once the client is gone, Starlette raises RuntimeError, or uvicorn an OSError.
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

    def cancel_timer(self) -> None:
        """Cancel the timeouts, since the connection has ended."""
        self._timer.cancel()

    def _check_age(self) -> None:
        now = time.time()
        due = min(self.last_active + self._idle_timeout, self._expires_at)
        if now >= due:
            self.close(*GOING_AWAY)
        else:
            self._timer = asyncio.get_running_loop().call_later(due - now, self._check_age)


class Sockets:
    """The open sockets of a gateway, by connection id."""

    def __init__(self) -> None:
        self._sockets: dict[str, Socket] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, socket: Socket) -> None:
        """Add an open socket."""
        self._sockets[socket.context.connection_id] = socket

    def remove(self, socket: Socket) -> None:
        """Remove a socket whose connection has ended."""
        del self._sockets[socket.context.connection_id]

    def find(self, connection_id: str) -> Socket | None:
        """Return an open socket; None if it is unknown or being closed."""
        socket = self._sockets.get(connection_id)
        return None if socket is None or socket.closing is not None else socket

    def expire(self, connection_id: str) -> bool:
        """Close a connection as if it had reached its maximum duration; False if it is unknown."""
        socket = self._sockets.get(connection_id)
        if socket is None:
            return False
        socket.close(*GOING_AWAY)
        return True

    def close_all(self) -> None:
        """Close every connection, since the gateway stops."""
        for socket in self._sockets.values():
            socket.close(*GOING_AWAY)
