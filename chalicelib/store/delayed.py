"""References to delayed messages: which there are, whom they are for, and where they are stored.

A *delayed* message reaches its recipients long after its id was made, because it waits in the queue
or is part of a second try of a request. Each resume in the tenant reads all of its references, so
they are small whatever the message: of a name there are eight bytes. The message itself is in the
streams of its audience (see `store/history.py`).

Most tenants have no delayed messages. So there is a *marker* in the stream of messages to everyone,
which each resume reads anyway: until when a delay may have been noted. No delay is noted for a time
that the marker doesn't cover. It is moved on by a minute at a time, and only forwards, so functions
whose clocks differ can't hide each other's references. No I/O here.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from chalicelib.clock import EpochMs, epoch_ms
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.messages import Message
from chalicelib.protocol.ulid import CHARACTERS, earliest
from chalicelib.store.expressions import Action, Clause, number, update
from chalicelib.store.schema import (
    DELAYED_MARKER_POSITION,
    Item,
    delayed_stream,
    everyone_stream,
    history_expires_at,
)

TIME_CHARACTERS = 10  # of an id; the others are random
DIGEST_BYTES = 8
MARKED_MS = 60_000
"""How far the marker is moved on at a time."""


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
    """Return the reference of an item."""
    digests: bytes = item["names"]["B"]
    return DelayedMessage(
        item["position"]["S"][-CHARACTERS:],
        AudienceKind(item["kind"]["S"]),
        frozenset(
            digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)
        ),
        int(item["bytes"]["N"]),
    )


# --- The marker


def move_marker(
    table: str, tenant: str | None, noted_at: EpochMs, history_seconds: int
) -> tuple[Action, EpochMs]:
    """Return the update that moves a tenant's marker on, and the time that it covers then.

    Its condition is that the marker doesn't cover `noted_at` yet.
    """
    until = EpochMs(noted_at + MARKED_MS)
    key = {
        "stream": {"S": everyone_stream(tenant)},
        "position": {"S": DELAYED_MARKER_POSITION},
    }
    clause = Clause(
        set=("#until = :until", "expiresAt = :expires"),
        when=("attribute_not_exists(#until) OR #until < :noted",),
        names={"#until": "until"},
        values={
            ":until": number(until),
            ":noted": number(noted_at),
            ":expires": number(history_expires_at(until, history_seconds)),
        },
    )
    return update(table, key, clause), until


def marked_until(item: Mapping[str, Any]) -> EpochMs:
    """Return the last time that a marker covers."""
    return epoch_ms(item["until"]["N"])
