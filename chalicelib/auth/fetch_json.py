"""Fetch JSON over HTTP within a time and a size that the server can't stretch.

A time-out of `http.client` limits the wait for one packet, so that a server which sends a byte a
second is waited for as long as it likes. Here the time-out of each packet is what is left of a
deadline for all.
"""

from http.client import HTTPConnection, HTTPException, HTTPSConnection
from io import BufferedReader, RawIOBase
from socket import socket
from typing import Any
from urllib.parse import urlsplit

from chalicelib.auth.cached_fetch import FetchError
from chalicelib.errors import BadRequest
from chalicelib.protocol.strict_json import parse_json
from chalicelib.runtime.deadlines import Deadline

MAX_BYTES = 256 * 1024
FETCH_SECONDS = 3.0  # from the connection's start to the last byte of the response


def fetch_json(url: str, seconds: float = FETCH_SECONDS) -> object:
    """Return the JSON at `url`.

    Verifies the certificate of an https URL, and follows no redirect, so that only the URL itself
    decides where the answer comes from.

    Args:
        url: An http or https URL.
        seconds: The time for everything but the name's resolution. If the name has several
            addresses, each that does not answer adds as much.

    Raises:
        FetchError: It can't be fetched, or is not JSON.
    """
    parts = urlsplit(url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=seconds)
    deadline = Deadline.after(seconds)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.connect()
        with connection.sock as sock:
            timed: Any = _TimedSocket(sock, deadline)
            connection.sock = timed
            connection.request("GET", target, headers={"Accept": "application/json"})
            return parse_json(_body(connection).decode())
    except TimeoutError:
        raise FetchError(f"no whole response within {seconds} s") from None
    except (OSError, HTTPException, ValueError, BadRequest) as error:
        raise FetchError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def _body(connection: HTTPConnection) -> bytes:
    """Return the body of the response. Raises FetchError, OSError, HTTPException."""
    response = connection.getresponse()
    if response.status != 200:
        raise FetchError(f"the response has status {response.status}")
    body = response.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise FetchError(f"the response is larger than {MAX_BYTES} bytes")
    return body


class _TimedSocket:
    """A socket as `http.client` uses it, with one deadline for all that it sends and receives."""

    def __init__(self, sock: socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        """Send `data`. Raises OSError."""
        self._limit_wait()
        self._sock.sendall(data)

    def recv_into(self, buffer: memoryview) -> int:
        """Receive some bytes. Raises OSError."""
        self._limit_wait()
        return self._sock.recv_into(buffer)

    def makefile(self, _mode: str) -> BufferedReader:
        """Return a reader of what the socket receives."""
        return BufferedReader(_Received(self))

    def close(self) -> None:
        """Leave the socket open: `http.client` closes it before it has read the body."""

    def _limit_wait(self) -> None:
        left = self._deadline.left()
        if not left:
            raise TimeoutError
        self._sock.settimeout(left)


class _Received(RawIOBase):
    """The bytes that a socket receives, as a stream."""

    def __init__(self, sock: _TimedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.recv_into(buffer)
