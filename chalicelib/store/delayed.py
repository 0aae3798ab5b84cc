"""References to delayed messages: which there are, whom they are for, and where they are stored.

A *delayed* message reaches its recipients long after its id was made, because it waits in the queue
or is part of a second try of a request. Each resume in the tenant reads all of its references, so
they are small whatever the message: of a name there are eight bytes. The message itself is in the
streams of its audience (see `store/history.py`). No I/O here.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from chalicelib.clock import EpochMs
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.messages import Message
from chalicelib.protocol.ulid import CHARACTERS, earliest
from chalicelib.store.expressions import number
from chalicelib.store.schema import Item, delayed_stream

TIME_CHARACTERS = 10  # of an id; the others are random
DIGEST_BYTES = 8


class DelayedMessage(NamedTuple):
    """A reference to a delayed message.

    `digests` are the `name_digest` of each name of its audience. `size` is about that of its item,
    in bytes.
    """

    id: str
    kind: AudienceKind
    digests: frozenset[bytes]
    size: int


def name_digest(name: str) -> bytes:
    """Return what a reference has of a name."""
    return hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).digest()


def delayed_position(noted_at: EpochMs) -> str:
    """Return the position of the first delayed message that was noted at this time."""
    return earliest(noted_at)[:TIME_CHARACTERS]


def delayed_item(message: Message, tenant: str | None, noted_at: EpochMs, size: int) -> Item:
    """Return the reference to a message as an item, which has no TTL yet."""
    audience = message.audience
    names = [name for name in audience.names if name not in audience.except_users]
    return {
        "stream": {"S": delayed_stream(tenant)},
        "position": {"S": delayed_position(noted_at) + message.id},
        "kind": {"S": audience.kind},
        "names": {"B": b"".join(sorted(map(name_digest, names)))},
        "bytes": number(size),
    }


def delayed_message(item: Mapping[str, Any]) -> DelayedMessage:
    """Return the reference of an item.

    Herald 0.1 stored copies instead. One of them becomes a reference to a message for everyone that
    is not found, so that a resume answers that it is incomplete.
    """
    if "kind" not in item:
        return DelayedMessage(item["position"]["S"][-CHARACTERS:], AudienceKind.ALL, frozenset(), 0)
    digests: bytes = item["names"]["B"]
    return DelayedMessage(
        item["position"]["S"][-CHARACTERS:],
        AudienceKind(item["kind"]["S"]),
        frozenset(
            digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)
        ),
        int(item["bytes"]["N"]),
    )
