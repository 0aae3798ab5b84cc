"""Pack messages into WebSocket frames, and build and hash each frame only once."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

from chalicelib import aws_limits
from chalicelib.auth.principal import user_key
from chalicelib.errors import PayloadTooLarge
from chalicelib.protocol.encryption import Encrypter, Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.strict_json import encode, parse_json

MAX_FRAME_BYTES = aws_limits.MESSAGE_BYTES  # a frame of Herald is a message to API Gateway
CACHED_SELECTIONS = 256  # since a request may have as many selections as recipients
ENCRYPTED_CACHE_BYTES = 32 * 1024 * 1024  # for the encrypted entries of one request

_T = TypeVar("_T")
_HEAD, _TAIL = b'{"type":"messages","messages":[', b"]}"


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A WebSocket text frame. `digest` is the SHA-256 of the body in hex, for the signatures.

    CLOSE and PROBE carry no text. They are sent the same way, with another `method`:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-how-to-call-websocket-api-connections.html
    """

    body: bytes
    digest: str
    messages: tuple[Message, ...] = ()
    method: str = "POST"


_EMPTY_DIGEST = hashlib.sha256(b"").hexdigest()

CLOSE = Frame(b"", _EMPTY_DIGEST, method="DELETE")
"""Closes the recipient's socket."""

PROBE = Frame(b"", _EMPTY_DIGEST, method="GET")
"""Asks whether the recipient's socket is open, without any effect on it."""


def frame_of(body: bytes, messages: tuple[Message, ...] = ()) -> Frame:
    """Return a frame with `body`, which contains `messages`."""
    return Frame(body, hashlib.sha256(body).hexdigest(), messages)


class Framer:
    """Packs messages into as few frames as their sizes allow, in order.

    A frame is filled up to `frame_bytes`; a larger message gets a frame of its own. API Gateway
    meters the frames that it sends in steps of 32 KB:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
    """

    def __init__(
        self,
        messages: Sequence[Message],
        frame_bytes: int,
        tenant: str | None,
        encryption: Encryption,
    ) -> None:
        """Prepare frames for recipients of `tenant`.

        Raises PayloadTooLarge when a message needs a frame of more than 128 KB, and Unavailable
        when the keys for encrypted messages can't be had.
        """
        self.messages = tuple(messages)
        encrypted = sum(message.encrypted for message in messages)
        encrypter = encryption.encrypter() if encrypted else None
        cache_bytes = ENCRYPTED_CACHE_BYTES // max(1, encrypted)
        self._entries = [_Entry(message, tenant, encrypter, cache_bytes) for message in messages]
        self._frame_bytes = frame_bytes
        self._encrypted = 0
        for index, entry in enumerate(self._entries):
            size = len(_HEAD) + entry.size + len(_TAIL)
            if size > MAX_FRAME_BYTES:
                raise PayloadTooLarge(
                    f"the message's frame would have {size} bytes;"
                    f" at most {MAX_FRAME_BYTES} are allowed"
                )
            self._encrypted |= entry.message.encrypted << index
        self._frames_for = lru_cache(CACHED_SELECTIONS)(self._frames)
        self.count = lru_cache(CACHED_SELECTIONS)(self._count)

    @property
    def most_frames(self) -> int:
        """Return the most frames that a recipient can get."""
        return self.count((1 << len(self._entries)) - 1)

    @property
    def size(self) -> int:
        """The size of all messages in frames, in bytes."""
        return sum(entry.size for entry in self._entries)

    def frames(self, selection: int, user_id: str) -> tuple[Frame, ...]:
        """Return the frames that carry the selected messages to a user.

        Bit n of `selection` selects the message at index n. Frames without an encrypted message
        are shared by all users.
        """
        return self._frames_for(selection, user_id if selection & self._encrypted else None)

    def _frames(self, selection: int, user_id: str | None) -> tuple[Frame, ...]:
        return tuple(_frame(entries, user_id) for entries in self._packed(selection))

    def _count(self, selection: int) -> int:
        """Return the number of frames that carry the selected messages, without building them."""
        return sum(1 for _ in self._packed(selection))

    def _packed(self, selection: int) -> Iterator[list["_Entry"]]:
        """Yield the entries of each frame that carries the selected messages."""
        selected = (
            (entry, entry.size)
            for index, entry in enumerate(self._entries)
            if selection >> index & 1
        )
        return _packed(selected, self._frame_bytes)


class Framing(NamedTuple):
    """Creates framers: frames are filled up to `frame_bytes`, and `encryption` encrypts entries."""

    frame_bytes: int
    encryption: Encryption

    def framer(self, messages: Sequence[Message], tenant: str | None) -> Framer:
        """Return the framer of messages to recipients of `tenant`.

        Raises PayloadTooLarge, and Unavailable if the keys for encrypted messages can't be had.
        """
        return Framer(messages, self.frame_bytes, tenant, self.encryption)

    def frames(self, texts: Iterable[bytes]) -> tuple[Frame, ...]:
        """Return the frames that carry entries, each given as its text, in order."""
        packed = _packed(((text, len(text)) for text in texts), self.frame_bytes)
        return tuple(frame_of(_body(entries)) for entries in packed)


class _Entry:
    """A message as it appears in frames. `size` is in bytes, and the same for every user."""

    def __init__(
        self, message: Message, tenant: str | None, encrypter: Encrypter | None, cache_bytes: int
    ) -> None:
        """Encode the message. `cache_bytes` limits the memory for its encrypted copies."""
        self.message = message
        self._tenant = tenant
        fields = message.to_frame_entry()
        if message.encrypted:
            assert encrypter is not None  # noqa: S101 - a framer of encrypted messages has one
            self._data = encode(message.data)
            text = encode(fields | {"data": "", "encrypted": True})
            before, _, after = text.rpartition(b'""')
            self._around = before + b'"', b'"' + after
            self.size = len(text) + encrypter.size(len(self._data))
            # Encrypting costs as much as delivering, so it is done once for each user, wherever in
            # the audience the user's connections are, while the cache has room.
            encrypt = partial(self._encrypt, encrypter)
            self._encrypted_for = lru_cache(cache_bytes // self.size)(encrypt)
        else:
            self._text = encode(fields)
            self.size = len(self._text)

    def text(self, user_id: str | None) -> bytes:
        """Return the entry for a user; None stands for all users."""
        if not self.message.encrypted:
            return self._text
        assert user_id is not None  # noqa: S101 - frames with encrypted messages have a user
        return self._encrypted_for(user_id)

    def _encrypt(self, encrypter: Encrypter, user_id: str) -> bytes:
        before, after = self._around
        data = encrypter.encrypt(self._data, user_key(self._tenant, user_id))
        return before + data.encode() + after  # a JWE has no character that JSON would escape


def encrypted_text(text: bytes, encrypter: Encrypter, user_key: str) -> bytes:
    """Return the text of an entry for one user, given the text that it has before encryption."""
    fields: Any = parse_json(text.decode())
    data = encrypter.encrypt(encode(fields["data"]), user_key)
    return encode({**fields, "data": data, "encrypted": True})


def _packed(sized: Iterable[tuple[_T, int]], frame_bytes: int) -> Iterator[list[_T]]:
    """Yield the entries of each frame. Each entry comes with the size of its text."""
    entries: list[_T] = []
    size = len(_HEAD) + len(_TAIL)
    for entry, entry_size in sized:
        if entries and size + entry_size + 1 > frame_bytes:
            yield entries
            entries, size = [], len(_HEAD) + len(_TAIL)
        entries.append(entry)
        size += entry_size + 1
    if entries:
        yield entries


def _frame(entries: Sequence[_Entry], user_id: str | None) -> Frame:
    body = _body(entry.text(user_id) for entry in entries)
    return frame_of(body, tuple(entry.message for entry in entries))


def _body(texts: Iterable[bytes]) -> bytes:
    return _HEAD + b",".join(texts) + _TAIL
