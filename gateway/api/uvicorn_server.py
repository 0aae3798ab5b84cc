"""The HTTP server, uvicorn, set up to behave like API Gateway."""

import asyncio
import contextlib
import errno
import logging
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import http11
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from gateway.api.sockets import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES
from gateway.configuration import Configuration, ConfigurationError

MAX_HEADER_BYTES = 10_240
"""API Gateway's limit. The library's own is lower, and would refuse a large token before the
authorizer sees it. https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html"""


class Server(uvicorn.Server):
    """A server that leaves signals to the gateway, so that a stop is not a failure."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


class _FrameProtocol(ServerProtocol):
    """Accepts a close frame between the fragments of a message (RFC 6455, section 5.4).

    The library would answer with 1002 instead of the client's own code.
    """

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None  # forget the unfinished message
        super().recv_frame(frame)


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """Answers a malformed handshake, for which the client would otherwise wait without end.

    It also gives the application `state.abort`, which ends a connection at once.
    """

    def __init__(self, config: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.conn = _FrameProtocol(max_size=config.ws_max_size, logger=self.logger)

    def handle_connect(self, event: http11.Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # the handshake was not refused
            self.scope["state"]["abort"] = self.transport.abort

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.handshake_complete = self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()


def uvicorn_config(app: ASGIApp, *, stop_timeout: int) -> uvicorn.Config:
    """Return how to serve `app`. A stop waits `stop_timeout` seconds for its open requests."""
    logging.getLogger("uvicorn.error").addFilter(_is_error)
    http11.MAX_LINE_LENGTH = MAX_HEADER_BYTES
    return uvicorn.Config(
        app,
        http="httptools",
        ws=_WebSocketProtocol,
        # The library takes a pair, too; it closes with 1009 beyond either limit.
        ws_max_size=(MAX_MESSAGE_BYTES, MAX_FRAME_BYTES),  # type: ignore[arg-type]
        ws_ping_interval=None,  # API Gateway sends no pings
        ws_per_message_deflate=False,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # a client's X-Forwarded-For can't be trusted
        lifespan="off",
        timeout_graceful_shutdown=stop_timeout,
    )


def _is_error(record: logging.LogRecord) -> bool:
    """Filter out what uvicorn logs as errors about refused handshakes and a normal stop."""
    message = record.getMessage()
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        return False
    return message != "ASGI callable returned without completing handshake." and not (
        message.startswith("Cancel ")
    )


def listen(configuration: Configuration) -> socket.socket:
    """Return a socket that listens on the configured host and port.

    Raises OSError if the port is in use, and ConfigurationError if the host or the port can't be
    used for another reason.
    """
    family = socket.AF_INET6 if ":" in configuration.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (configuration.host, configuration.port), family=family, backlog=4096
        )
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise
        raise ConfigurationError(_why_it_cannot_listen(configuration, error)) from error
    # Accepted connections inherit this. asyncio sets it only for sockets that it made itself;
    # without it, a response's second packet waits 40 ms for the first one's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _why_it_cannot_listen(configuration: Configuration, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return (
            f"PORT holds {configuration.port}, which this user may not listen on; allowed: a"
            " number from 1024 to 65535, or 0 for a free port"
        )
    return (
        f"HOST holds {configuration.host!r}; allowed: an address or a name of this machine, such"
        " as 127.0.0.1, localhost or ::1, or 0.0.0.0 for all its addresses"
    )
