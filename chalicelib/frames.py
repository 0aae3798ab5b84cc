"""WebSocket frames: which messages travel together, built and hashed once for all recipients."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from chalicelib.errors import PayloadTooLarge
from chalicelib.json_text import encode
from chalicelib.messages import Message

MAX_FRAME_BYTES = 128 * 1024  # API Gateway's largest WebSocket message
SELECTIONS_KEPT = 256  # a request may ask for as many selections as it has recipients

_HEAD, _TAIL = b'{"type":"messages","messages":[', b"]}"


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One WebSocket text frame. `digest` is the body's SHA-256 in hex, for its signatures.

    Two are no text, but go the same way: CLOSE and PROBE. They differ in their `method`:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-how-to-call-websocket-api-connections.html
    """

    body: bytes
    digest: str
    messages: tuple[Message, ...] = ()
    method: str = "POST"


_NOTHING = hashlib.sha256(b"").hexdigest()

CLOSE = Frame(b"", _NOTHING, method="DELETE")
"""Closes the recipient's socket."""

PROBE = Frame(b"", _NOTHING, method="GET")
"""Asks whether the recipient's socket is open, and does nothing to it."""


def frame_of(body: bytes, messages: tuple[Message, ...] = ()) -> Frame:
    """The frame that holds `body`, which carries `messages`."""
    return Frame(body, hashlib.sha256(body).hexdigest(), messages)


class Framer:
    """Puts messages into as few frames as their size allows, in order.

    A frame is filled up to `frame_bytes`; a message that is larger has a frame of its own. API
    Gateway meters what it sends in steps of 32 KB:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
    """

    def __init__(self, messages: Sequence[Message], frame_bytes: int) -> None:
        """Raises PayloadTooLarge for a message whose frame would pass 128 KB."""
        self._messages = messages
        self._entries = [encode(message.to_frame_entry()) for message in messages]
        self._frame_bytes = frame_bytes
        for entry in self._entries:
            size = len(_HEAD) + len(entry) + len(_TAIL)
            if size > MAX_FRAME_BYTES:
                raise PayloadTooLarge(
                    f"the message's frame would have {size} bytes; {MAX_FRAME_BYTES} are allowed"
                )
        self.frames = lru_cache(SELECTIONS_KEPT)(self._frames)

    def _frames(self, selection: int) -> tuple[Frame, ...]:
        """The frames for those messages whose bits are set in `selection`, the first's lowest."""
        frames: list[Frame] = []
        carried: list[int] = []
        size = len(_HEAD) + len(_TAIL)
        for index, entry in enumerate(self._entries):
            if not selection >> index & 1:
                continue
            if carried and size + len(entry) + 1 > self._frame_bytes:
                frames.append(self._frame(carried))
                carried, size = [], len(_HEAD) + len(_TAIL)
            carried.append(index)
            size += len(entry) + 1
        if carried:
            frames.append(self._frame(carried))
        return tuple(frames)

    def _frame(self, carried: list[int]) -> Frame:
        body = _HEAD + b",".join(self._entries[index] for index in carried) + _TAIL
        return frame_of(body, tuple(self._messages[index] for index in carried))
