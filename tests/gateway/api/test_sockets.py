"""The open sockets: their queues, their closing and the registry of all."""

import asyncio
from typing import Any

import pytest

from gateway.api.events import WebSocketContext
from gateway.api.sockets import GOING_AWAY, MAX_BUFFERED_BYTES, BufferFull, Socket, Sockets


class WebSocket:
    """A WebSocket whose client reads everything."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.closed: tuple[int, str] | None = None
        self.state = self

    def abort(self) -> None:
        raise AssertionError("the connection was aborted")

    async def send_text(self, text: str) -> None:
        self.sent.append(text)

    async def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)


def open_socket(websocket: Any) -> Socket:
    context = WebSocketContext(
        stage="ws", domain_name="localhost", port=1, headers=[], query="", source_ip="127.0.0.1"
    )
    return Socket(websocket, context, idle_timeout=60, max_duration=60, closing_timeout=60)


def test_a_close_is_sent_after_the_queued_frames() -> None:
    async def run() -> None:
        websocket = WebSocket()
        socket = open_socket(websocket)
        socket.send("one")
        socket.send("two")
        socket.close(1000, "first")
        socket.close(1001, "second")
        await socket.write()
        assert websocket.sent == ["one", "two"]
        assert websocket.closed == (1000, "first")
        socket.cancel_timer()

    asyncio.run(run())


def test_a_full_queue_refuses_frames() -> None:
    async def run() -> None:
        socket = open_socket(WebSocket())
        socket.send("x" * MAX_BUFFERED_BYTES)
        with pytest.raises(BufferFull):
            socket.send("x")
        socket.cancel_timer()

    asyncio.run(run())


def test_an_expired_connection_cannot_be_found() -> None:
    async def run() -> None:
        sockets, socket = Sockets(), open_socket(WebSocket())
        connection_id = socket.context.connection_id
        sockets.add(socket)
        assert sockets.find(connection_id) is socket
        assert sockets.expire(connection_id)
        assert socket.closing == GOING_AWAY
        assert sockets.find(connection_id) is None
        assert len(sockets) == 1
        sockets.remove(socket)
        assert not sockets.expire(connection_id)
        socket.cancel_timer()

    asyncio.run(run())
