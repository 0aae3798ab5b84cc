"""WebSocket frames: which messages travel together, built and hashed once for all recipients."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from chalicelib import aws_limits
from chalicelib.auth.principal import user_key
from chalicelib.errors import PayloadTooLarge
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.strict_json import encode

MAX_FRAME_BYTES = aws_limits.MESSAGE_BYTES  # our frame is a message to API Gateway
SELECTIONS_KEPT = 256  # a request may ask for as many selections as it has recipients
ENCRYPTED_BYTES = 32 * 1024 * 1024  # kept of a request's encrypted entries

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

    def __init__(
        self,
        messages: Sequence[Message],
        frame_bytes: int,
        tenant: str | None,
        encryption: Encryption,
    ) -> None:
        """All recipients are of `tenant`. Raises PayloadTooLarge for a message whose frame would
        pass 128 KB."""
        self.messages = tuple(messages)
        room = ENCRYPTED_BYTES // max(1, sum(message.encrypted for message in messages))
        self._entries = [_Entry(message, tenant, encryption, room) for message in messages]
        self._frame_bytes = frame_bytes
        self._encrypted = 0
        for index, entry in enumerate(self._entries):
            size = len(_HEAD) + entry.size + len(_TAIL)
            if size > MAX_FRAME_BYTES:
                raise PayloadTooLarge(
                    f"the message's frame would have {size} bytes; {MAX_FRAME_BYTES} are allowed"
                )
            self._encrypted |= entry.message.encrypted << index
        self._frames_for = lru_cache(SELECTIONS_KEPT)(self._frames)

    def frames(self, selection: int, user_id: str) -> tuple[Frame, ...]:
        """The frames for a user with those messages whose bits are set in `selection`, the first's
        lowest. Where none is encrypted, they are the same for everybody."""
        return self._frames_for(selection, user_id if selection & self._encrypted else None)

    def _frames(self, selection: int, reader: str | None) -> tuple[Frame, ...]:
        frames: list[Frame] = []
        carried: list[_Entry] = []
        size = len(_HEAD) + len(_TAIL)
        for index, entry in enumerate(self._entries):
            if not selection >> index & 1:
                continue
            if carried and size + entry.size + 1 > self._frame_bytes:
                frames.append(_frame(carried, reader))
                carried, size = [], len(_HEAD) + len(_TAIL)
            carried.append(entry)
            size += entry.size + 1
        if carried:
            frames.append(_frame(carried, reader))
        return tuple(frames)


class _Entry:
    """A message in its frames. `size` is in bytes, the same for every reader."""

    def __init__(
        self, message: Message, tenant: str | None, encryption: Encryption, room: int
    ) -> None:
        """`room` is for what is encrypted, in bytes."""
        self.message = message
        self._tenant = tenant
        self._encryption = encryption
        self._fields = message.to_frame_entry()
        if message.encrypted:
            self._data = encode(message.data)
            self._fields |= {"data": "", "encrypted": True}
            self.size = len(encode(self._fields)) + encryption.size(len(self._data))
            # Encrypting costs as much as delivering: once for each user, wherever in an audience
            # their connections are, as long as there is room to remember it.
            self._encrypted_for = lru_cache(room // self.size)(self._encrypt)
        else:
            self._text = encode(self._fields)
            self.size = len(self._text)

    def text(self, reader: str | None) -> bytes:
        """The entry as `reader` gets it; None is everybody."""
        if not self.message.encrypted:
            return self._text
        assert reader is not None  # noqa: S101 - frames with encrypted messages have one
        return self._encrypted_for(reader)

    def _encrypt(self, reader: str) -> bytes:
        data = self._encryption.encrypt(self._data, user_key(self._tenant, reader))
        return encode({**self._fields, "data": data})


def _frame(carried: Sequence[_Entry], reader: str | None) -> Frame:
    body = _HEAD + b",".join(entry.text(reader) for entry in carried) + _TAIL
    return frame_of(body, tuple(entry.message for entry in carried))
