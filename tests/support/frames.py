"""A WebSocket client that can break the rules: it writes frames bit by bit, and reads any frame.

https://www.rfc-editor.org/rfc/rfc6455
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x0a\x0b\x0c\x0d"
WAIT_SECONDS = 10.0


class Frame(NamedTuple):
    """A frame that the server sent."""

    opcode: int
    payload: bytes
    final: bool = True


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    reserved: int = 0,
    masked: bool = True,
) -> bytes:
    """Return the bytes of a frame (section 5.2)."""
    head = bytes([final << 7 | reserved << 4 | opcode])
    length, mask_bit = len(payload), masked << 7
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 65536:
        head += bytes([mask_bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", length)
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))


def closing(code: int, reason: bytes = b"") -> bytes:
    """Return the bytes of a close frame."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


class Raw:
    """An open connection, to which a test can write any bytes."""

    def __init__(self, connection: socket.socket, head: bytes, rest: bytes) -> None:
        self.connection = connection
        self.status = int(head.split(b" ", 2)[1])
        self.head = head.decode("latin-1").lower()
        self._buffer = rest

    def write(self, *data: bytes) -> None:
        """Send bytes as they are."""
        self.connection.sendall(b"".join(data))

    def read(self) -> Frame | None:
        """Return the next frame; None if the connection has ended."""
        try:
            first, second = self._take(2)
            length = second & 127
            if length == 126:
                [length] = struct.unpack("!H", self._take(2))
            elif length == 127:
                [length] = struct.unpack("!Q", self._take(8))
            assert not second & 128, "a server must not mask"
            return Frame(first & 15, self._take(length), bool(first & 128))
        except EOFError:
            return None

    def ended(self) -> tuple[int, str] | None:
        """Wait for the end of the connection.

        Returns the code and reason of the server's close frame; None if it ended without one.
        """
        while (received := self.read()) is not None:
            if received.opcode == CLOSE:
                if received.payload:
                    self.write(closing(*struct.unpack("!H", received.payload[:2])))
                assert self.read() is None
                code = received.payload[:2] or struct.pack("!H", 1005)
                return struct.unpack("!H", code)[0], received.payload[2:].decode()
        return None

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                data = self.connection.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


@contextmanager
def handshake(url: str, **changes: str | None) -> Iterator[Raw]:
    """Send a handshake with changed headers (None leaves one out). Yields the connection."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    headers = {
        "Host": parts.netloc,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec_WebSocket_Version": "13",
        **changes,
    }
    lines = [f"GET {parts.path} HTTP/1.1"]
    lines += [
        f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None
    ]
    with socket.create_connection((parts.hostname, parts.port), timeout=WAIT_SECONDS) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        response = b""
        while b"\r\n\r\n" not in response:
            data = connection.recv(65536)
            assert data, response
            response += data
        head, _, rest = response.partition(b"\r\n\r\n")
        yield Raw(connection, head, rest)
