"""The history: recent messages, for clients that were away.

A message is stored once for each name of its audience, however many recipients it has. It goes into
the stream of each user, of each group, or of the whole tenant (see `schema`), in the order of ids.
It is stored before its recipients are looked up, so that a client which connects meanwhile either
is found or finds the message here.

A *delayed* message reaches its recipients long after its id was made, because it waits in the queue
or is part of a second try of a request. It is also stored in its tenant's stream of delayed
messages, in the order in which the delays were noted.
"""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple
from uuid import uuid4

from chalicelib import aws_limits
from chalicelib.clock import Clock, EpochMs
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.strict_json import encode, parse_json
from chalicelib.protocol.ulid import CHARACTERS, earliest
from chalicelib.store.dynamodb import MAX_BATCH_WRITE, Store
from chalicelib.store.expressions import number
from chalicelib.store.schema import (
    Item,
    delayed_stream,
    everyone_stream,
    group_stream,
    history_expires_at,
    user_stream,
)

CLOCK_MS = 1000  # the most by which the clocks of two functions differ
DELAYED_MS = 1000  # a message stored this long after its id was made is delayed
REACH_BACK_MS = DELAYED_MS + aws_limits.HANDLER_MS + CLOCK_MS
"""A message may reach a connection after another whose id is later by up to this."""

PAGE_ITEMS = 200
TIME_CHARACTERS = 10  # of an id; the others are random


class RequestNumber(NamedTuple):
    """The place of a request among those of its `writer`, an execution environment.

    A writer handles one request after the other, and counts them.
    """

    writer: str
    number: int

    def precedes(self, other: "RequestNumber") -> bool:
        """Return whether a message of this request with a lower id was certainly sent before one
        of the `other`.

        In one request it was: each connection gets its messages in order, and after a failure it
        gets no more.
        """
        return self.writer == other.writer and self.number <= other.number


class StoredMessage(NamedTuple):
    """A message of a stream, as it is stored: `content` is encrypted, or else compressed."""

    id: str
    request: RequestNumber
    content: bytes
    encrypted: bool


class History:
    """The messages of the last `seconds`.

    Every method raises Unavailable if storage is unavailable.
    """

    def __init__(
        self,
        store: Store,
        *,
        seconds: int,
        encryption: Encryption,
        writers: Executor,
        now: Clock,
    ) -> None:
        """Store nothing when `seconds` is 0. `writers` runs the writes of large requests."""
        self.seconds = seconds
        self._store = store
        self._table = store.tables.history
        self._encryption = encryption
        self._now = now
        self._writer = uuid4().hex[:12]
        self._numbers = count()
        self._writers = writers

    # --- Writes

    def append(self, messages: Sequence[Message], tenant: str | None) -> None:
        """Store the messages of one request, except those that ask not to be stored.

        To be called before any of them is sent.
        """
        request = RequestNumber(self._writer, next(self._numbers))
        now = self._now()
        items: list[Item] = []
        for message in filter(self._is_stored, messages):
            items += self._items(message, tenant, request)
            if now - message.timestamp > DELAYED_MS:
                items.append(self._delayed_item(message, tenant, request, now))
        self._put(items)

    def mark_delayed(self, messages: Sequence[Message], tenant: str | None) -> None:
        """Note that messages which `append` has stored will be sent after later ones."""
        request = RequestNumber(self._writer, next(self._numbers))
        now = self._now()
        self._put(
            [
                self._delayed_item(message, tenant, request, now)
                for message in filter(self._is_stored, messages)
            ]
        )

    def _is_stored(self, message: Message) -> bool:
        kind = message.audience.kind
        return self.seconds > 0 and message.stored and kind is not AudienceKind.CONNECTIONS

    def _items(self, message: Message, tenant: str | None, request: RequestNumber) -> list[Item]:
        audience = message.audience
        match audience.kind:
            case AudienceKind.USERS:
                names = (name for name in audience.names if name not in audience.except_users)
                streams = [user_stream(tenant, name) for name in names]
            case AudienceKind.GROUPS:
                streams = [group_stream(tenant, name) for name in audience.names]
            case _:
                streams = [everyone_stream(tenant)]
        nameless = replace(message, audience=audience._replace(names=()))
        item = self._item(nameless, request, message.id)
        return [{"stream": {"S": stream}, **item} for stream in streams]

    def _delayed_item(
        self, message: Message, tenant: str | None, request: RequestNumber, now: EpochMs
    ) -> Item:
        item = self._item(message, request, earliest(now)[:TIME_CHARACTERS] + message.id)
        return {"stream": {"S": delayed_stream(tenant)}, **item}

    def _item(self, message: Message, request: RequestNumber, position: str) -> Item:
        content = encode(message.to_dict())
        seal = self._encryption.seal
        last_needed = EpochMs(self._now() + REACH_BACK_MS)
        return {
            "position": {"S": position},
            "turn": {"S": f"{request.writer}/{request.number}"},
            # Encrypted or compressed, never both: the compressed size would leak the content.
            **(
                {"sealed": {"B": seal(content)}}
                if message.encrypted
                else {"packed": {"B": zlib.compress(content)}}
            ),
            "expiresAt": number(history_expires_at(last_needed, self.seconds)),
        }

    def _put(self, items: Sequence[Item]) -> None:
        batches = [
            items[start : start + MAX_BATCH_WRITE]
            for start in range(0, len(items), MAX_BATCH_WRITE)
        ]
        if len(batches) == 1:
            self._store.batch_put(self._table, batches[0])
            return
        writes = [
            self._writers.submit(self._store.batch_put, self._table, batch) for batch in batches
        ]
        # Wait for all, even if one fails: nothing may be written after the request is answered.
        errors = [error for write in writes if (error := write.exception()) is not None]
        for error in errors:
            raise error

    # --- Reads

    def of_user(self, tenant: str | None, user_id: str, since: EpochMs) -> Iterator[StoredMessage]:
        """Yield the messages to a user whose ids were made from `since` on, by id."""
        return self._read(user_stream(tenant, user_id), earliest(since))

    def of_group(self, tenant: str | None, group: str, since: EpochMs) -> Iterator[StoredMessage]:
        """Yield the messages to a group whose ids were made from `since` on, by id."""
        return self._read(group_stream(tenant, group), earliest(since))

    def of_everyone(self, tenant: str | None, since: EpochMs) -> Iterator[StoredMessage]:
        """Yield the messages to everyone of a tenant whose ids were made from `since` on, by id."""
        return self._read(everyone_stream(tenant), earliest(since))

    def delayed(self, tenant: str | None, since: EpochMs) -> Iterator[StoredMessage]:
        """Yield the messages to anyone in a tenant whose delay was noted from `since` on."""
        return self._read(delayed_stream(tenant), earliest(since)[:TIME_CHARACTERS])

    def decode(self, stored: StoredMessage) -> Message:
        """Return a stored message. Unless it was delayed, its audience's names are left out.

        Raises KeyError if it is encrypted and its master key has been removed.
        """
        content = (
            self._encryption.unseal(stored.content)
            if stored.encrypted
            else zlib.decompress(stored.content)
        )
        fields: Any = parse_json(content.decode())
        return Message.from_dict(fields)

    def _read(self, stream: str, position: str) -> Iterator[StoredMessage]:
        pages = self._store.query(
            self._table,
            KeyConditionExpression="#stream = :stream AND #position >= :position",
            ExpressionAttributeNames={"#stream": "stream", "#position": "position"},
            ExpressionAttributeValues={":stream": {"S": stream}, ":position": {"S": position}},
            ConsistentRead=True,  # the last message stored may be one that was missed
            Limit=PAGE_ITEMS,
        )
        for page in pages:
            yield from map(_stored_message, page.items)


def _stored_message(item: Item) -> StoredMessage:
    writer, _, number_of_request = item["turn"]["S"].partition("/")
    encrypted = "sealed" in item
    return StoredMessage(
        item["position"]["S"][-CHARACTERS:],
        RequestNumber(writer, int(number_of_request)),
        item["sealed" if encrypted else "packed"]["B"],
        encrypted,
    )
