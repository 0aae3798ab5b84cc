"""The messages of queued requests, stored for the workers that deliver them.

In the messages table, `content/<request>/<n>` holds the n-th part of a request's messages: packed,
and cut into parts that fit into an item.
"""

import json
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from chalicelib import aws_limits
from chalicelib.clock import EpochSeconds
from chalicelib.errors import HeraldError
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.strict_json import encode
from chalicelib.store.dynamodb import Store
from chalicelib.store.expressions import number
from chalicelib.store.schema import Item, content_id

PART_BYTES = aws_limits.ITEM_CONTENT_BYTES


class ContentLost(HeraldError):
    """A job's messages can't be read: they have expired, or their master key was removed."""


class StoredContent(NamedTuple):
    """The number of parts that hold a request's messages, and whether they are encrypted."""

    parts: int
    sealed: bool


class Contents:
    """Stores and loads the messages of requests. All methods raise Unavailable if storage is."""

    def __init__(self, store: Store, encryption: Encryption) -> None:
        self._store = store
        self._table = store.tables.messages
        self._encryption = encryption

    def put(
        self, messages: Sequence[Message], expires_at: EpochSeconds
    ) -> tuple[StoredContent, int]:
        """Store the messages of a request, whose id is that of the first message.

        Returns how they are stored, and their size in bytes.
        """
        content = encode([message.to_dict() for message in messages])
        sealed = any(message.encrypted for message in messages)
        # Encrypted content isn't compressed: the compressed size would reveal something about it.
        packed = self._encryption.seal(content) if sealed else zlib.compress(content)
        starts = range(0, len(packed), PART_BYTES)
        for index, start in enumerate(starts):
            item: Item = {
                "id": {"S": content_id(messages[0].id, index)},
                "part": {"B": packed[start : start + PART_BYTES]},
                "expiresAt": number(expires_at),
            }
            self._store.put(self._table, item)
        return StoredContent(len(starts), sealed), len(content)

    def get(self, request: str, stored: StoredContent) -> list[Message]:
        """Load the messages of a request. Raises ContentLost."""
        ids = [content_id(request, index) for index in range(stored.parts)]
        found = {
            item["id"]["S"]: bytes(item["part"]["B"])
            for page in self._store.batch_get(self._table, "id", ids)
            for item in page
        }
        try:
            packed = b"".join(found[part_id] for part_id in ids)
            content = self._encryption.unseal(packed) if stored.sealed else zlib.decompress(packed)
        except KeyError:
            raise ContentLost("a job's messages have expired, or their key was removed") from None
        return [Message.from_dict(fields) for fields in json.loads(content)]
