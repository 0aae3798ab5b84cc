"""The history: recent messages, for clients that were away.

A message is stored once for each name of its audience, however many recipients it has. It goes into
the stream of each user, of each group, or of the whole tenant (see `schema`), in the order of ids.
It is stored before its recipients are looked up, so that a client which connects meanwhile either
is found or finds the message here.

A *delayed* message reaches its recipients long after its id was made (see `delayed`). The stream of
its tenant's delayed messages refers to it, in the order in which the delays were noted.
"""

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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
from chalicelib.protocol.ulid import earliest
from chalicelib.store.delayed import (
    DelayedMessage,
    delayed_item,
    delayed_message,
    delayed_position,
)
from chalicelib.store.dynamodb import MAX_BATCH_WRITE, ItemPage, Store
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
PAGE_BYTES = 1024 * 1024  # a page of DynamoDB
DELAYED_PAGE_ITEMS = 500


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
                items.append(self._delayed_item(message, tenant, now))
        self._put(items)

    def mark_delayed(self, messages: Sequence[Message], tenant: str | None) -> None:
        """Note that messages which `append` has stored will be sent after later ones."""
        now = self._now()
        self._put(
            [
                self._delayed_item(message, tenant, now)
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

    def _delayed_item(self, message: Message, tenant: str | None, now: EpochMs) -> Item:
        size = len(encode(message.data))
        return {**delayed_item(message, tenant, now, size), "expiresAt": self._expires_at()}

    def _item(self, message: Message, request: RequestNumber, position: str) -> Item:
        content = encode(message.to_dict())
        seal = self._encryption.seal
        return {
            "position": {"S": position},
            "turn": {"S": f"{request.writer}/{request.number}"},
            # Encrypted or compressed, never both: the compressed size would leak the content.
            **(
                {"sealed": {"B": seal(content)}}
                if message.encrypted
                else {"packed": {"B": zlib.compress(content)}}
            ),
            "expiresAt": self._expires_at(),
        }

    def _expires_at(self) -> Any:
        last_needed = EpochMs(self._now() + REACH_BACK_MS)
        return number(history_expires_at(last_needed, self.seconds))

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

    def read(
        self, stream: str, since: EpochMs, page_bytes: int = PAGE_BYTES
    ) -> Iterator[StoredMessage]:
        """Yield the messages of a stream whose ids were made from `since` on, by id.

        Args:
            stream: One of those that `schema` names.
            since: The time of the first id.
            page_bytes: The most that waits in memory, unless a single message is larger. The rest
                of a larger page is dropped and read again, in pages of about the right size.
        """
        items, after = PAGE_ITEMS, None
        while True:
            page = next(self._pages(stream, earliest(since), items, after))
            messages = deque(map(_stored_message, page.items))
            if _cut(messages, page_bytes):
                items = len(messages)
            elif page.position is None:
                yield from messages
                return
            else:
                items = min(PAGE_ITEMS, items * 2)
            after = {"stream": {"S": stream}, "position": {"S": messages[-1].id}}
            del page
            while messages:
                yield messages.popleft()

    def delayed(self, tenant: str | None, since: EpochMs) -> Iterator[DelayedMessage]:
        """Yield references to the messages in a tenant whose delay was noted from `since` on."""
        position = delayed_position(since)
        for page in self._pages(delayed_stream(tenant), position, DELAYED_PAGE_ITEMS):
            yield from map(delayed_message, page.items)

    def find(self, streams: Sequence[str], ids: Sequence[str]) -> list[StoredMessage]:
        """Return the messages with these ids, each if its stream has it. The pairs are unique."""
        found = self._store.batch_get_keys(self._table, _keys(streams, ids))
        return [_stored_message(item) for page in found for item in page]

    def request_of(self, message_id: str, streams: Sequence[str]) -> RequestNumber | None:
        """Return the request of a message that is in any of these streams, or else None."""
        found = self._store.batch_get_keys(
            self._table,
            _keys(streams, [message_id] * len(streams)),
            ProjectionExpression="turn",
        )
        return next((_request_number(item) for page in found for item in page), None)

    def unpack(self, stored: StoredMessage) -> bytes:
        """Return the text of a stored message, for `decode`.

        Raises KeyError if it is encrypted and its master key has been removed.
        """
        if stored.encrypted:
            return self._encryption.unseal(stored.content)
        return zlib.decompress(stored.content)

    def _pages(
        self, stream: str, position: str, items: int, after: Item | None = None
    ) -> Iterator[ItemPage]:
        return self._store.query(
            self._table,
            KeyConditionExpression="#stream = :stream AND #position >= :position",
            ExpressionAttributeNames={"#stream": "stream", "#position": "position"},
            ExpressionAttributeValues={":stream": {"S": stream}, ":position": {"S": position}},
            ConsistentRead=True,  # the last message stored may be one that was missed
            Limit=items,
            **({} if after is None else {"ExclusiveStartKey": after}),
        )


def decode(text: bytes) -> Message:
    """Return the message of a text that `History.unpack` returned, without its audience's names."""
    fields: Any = parse_json(text.decode())
    return Message.from_dict(fields)


def _cut(messages: deque[StoredMessage], most_bytes: int) -> bool:
    """Drop the last messages until the others have at most so many bytes, or one is left.

    Returns whether any was dropped.
    """
    size, count = sum(len(one.content) for one in messages), len(messages)
    while size > most_bytes and len(messages) > 1:
        size -= len(messages.pop().content)
    return len(messages) < count


def _keys(streams: Iterable[str], ids: Iterable[str]) -> list[Item]:
    return [
        {"stream": {"S": stream}, "position": {"S": one}}
        for stream, one in zip(streams, ids, strict=True)
    ]


def _stored_message(item: Item) -> StoredMessage:
    encrypted = "sealed" in item
    return StoredMessage(
        item["position"]["S"],
        _request_number(item),
        item["sealed" if encrypted else "packed"]["B"],
        encrypted,
    )


def _request_number(item: Item) -> RequestNumber:
    writer, _, number_of_request = item["turn"]["S"].partition("/")
    return RequestNumber(writer, int(number_of_request))
