"""An HTTP/1.1 connection: its socket, the request that it carries, the parser of the response."""

import re
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httptools

from chalicelib.delivery.resolver import Address

TaskT = TypeVar("TaskT")


class Origin:
    """A scheme, host and port (RFC 6454), with the idle connections to it."""

    __slots__ = ("host", "idle", "port", "secure", "session")

    def __init__(self, endpoint: str) -> None:
        """Parse an http or https URL."""
        parts = urlsplit(endpoint)
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self.idle: list[HttpConnection[Any]] = []
        self.session: ssl.SSLSession | None = None


class HttpConnection(Generic[TaskT]):
    """A connection and the request that it carries for `task`.

    The transport calls `on_ready` when the selector reports the socket as ready.
    """

    __slots__ = (
        "addresses",
        "keep_alive",
        "on_ready",
        "origin",
        "parser",
        "received",
        "response_complete",
        "reused",
        "sock",
        "task",
        "timeout_at",
        "unsent",
        "watched",
    )

    def __init__(self, origin: Origin, task: TaskT, request: bytes, timeout_at: float) -> None:
        self.origin: Origin = origin
        self.task = task
        self.unsent = request
        self.timeout_at = timeout_at
        self.addresses: Iterator[Address] = iter(())
        self.sock: Any = None  # a socket, later perhaps the TLS socket around it
        self.on_ready: OnReady[TaskT]
        self.watched = self.reused = self.response_complete = self.keep_alive = False
        self.received = b""
        self.parser = httptools.HttpResponseParser(self)

    def on_message_complete(self) -> None:
        """Note the end of a response; the parser calls this.

        A status below 200, such as 100 Continue, precedes the response proper.
        """
        self.response_complete = self.parser.get_status_code() >= 200
        self.keep_alive = self.parser.should_keep_alive()

    def ends_with_stream(self) -> bool:
        """Return whether the bytes received are a response that ends when the connection closes.

        RFC 9112 section 6.3: only a response without a length does. Any other was cut off.
        """
        head, blank_line, _ = self.received.partition(b"\r\n\r\n")
        return bool(blank_line) and _find_length(head) is None

    def error_type(self) -> str:
        """Return the name that API Gateway gave an error; an empty string without one."""
        found = _find_error_type(self.received)
        return found[1].decode() if found else ""


OnReady = Callable[[HttpConnection[TaskT]], None]

_find_length = re.compile(rb"\r\n(content-length|transfer-encoding):", re.IGNORECASE).search
_find_error_type = re.compile(rb"\r\nx-amzn-errortype: *(\w+)", re.IGNORECASE).search
