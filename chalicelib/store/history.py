"""The history: recent messages, for clients that were away.

A message is stored once for each name of its audience, however many recipients it has. It goes into
the stream of each user, of each group, or of the whole tenant (see `schema`), in the order of ids.
It is stored before its recipients are looked up, so that a client which connects meanwhile either
is found or finds the message here.

A *delayed* message reaches its recipients long after its id was made (see `delayed`). The stream of
its tenant's delayed messages refers to it, in the order in which the delays were noted.

The history must not fail a request. A message for which there is no room in time is sent all the
same, and its sender is told that it is not stored.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import count
from typing import Any, NamedTuple
from uuid import uuid4

from chalicelib import aws_limits
from chalicelib.clock import Clock, EpochMs
from chalicelib.errors import Unavailable
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.cost import copies_per_name, names_of, written_copies
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.strict_json import encode
from chalicelib.protocol.ulid import CHARACTERS, earliest
from chalicelib.store.delayed import (
    DelayedMessage,
    delayed_item,
    delayed_message,
    delayed_position,
    marked_until,
    move_marker,
)
from chalicelib.store.dynamodb import Cancelled, ItemPage, Store
from chalicelib.store.expressions import number
from chalicelib.store.lru import LruDict
from chalicelib.store.paced_writes import PacedWriter, PricedItem, WriteLimits
from chalicelib.store.schema import (
    AFTER_MESSAGES,
    DELAYED_MARKER_POSITION,
    Item,
    delayed_stream,
    everyone_stream,
    group_stream,
    history_expires_at,
    user_stream,
)
from chalicelib.store.stored_messages import (
    RequestNumber,
    StoredMessage,
    request_number,
    stored_item,
    stored_message,
)

CLOCK_MS = 1000  # the most by which the clocks of two functions differ
DELAYED_MS = 1000  # a message stored this long after its id was made is delayed
REACH_BACK_MS = DELAYED_MS + aws_limits.HANDLER_MS + CLOCK_MS
"""A message may reach a connection after another whose id is later by up to this."""

PAGE_ITEMS = 200
PAGE_BYTES = 1024 * 1024  # a page of DynamoDB
DELAYED_PAGE_ITEMS = 500
CACHED_MARKERS = 10_000  # tenants
DEFAULT_LIMITS = WriteLimits()

logger = logging.getLogger("herald.history")


class StreamPage(NamedTuple):
    """A page of a stream.

    Attributes:
        messages: Its messages, by id.
        ends: Whether the stream has no more messages.
        others: What the stream has after its messages (see `schema`); None if there is more.
    """

    messages: deque[StoredMessage]
    ends: bool
    others: Sequence[Item] | None


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
        limits: WriteLimits = DEFAULT_LIMITS,
    ) -> None:
        """Store nothing when `seconds` is 0. `writers` runs the writes of large requests."""
        self.seconds = seconds
        self._table = store.tables.history
        self._store = store
        self._encryption = encryption
        self._now = now
        self._writer = uuid4().hex[:12]
        self._numbers = count()
        self._marked: LruDict[str | None, EpochMs] = LruDict(CACHED_MARKERS)
        self._paced_writer = PacedWriter(store, self._table, writers=writers, limits=limits)

    # --- Writes

    def copies(self, messages: Iterable[Message]) -> int:
        """Return the copies that `append` writes; see `protocol.cost`."""
        return written_copies(filter(self._is_kept, messages))

    def append(self, messages: Sequence[Message], tenant: str | None) -> frozenset[str]:
        """Store the messages of one request, except those that ask not to be stored.

        To be called before any of them is sent. Returns the ids of the messages that could not be
        stored in full, since DynamoDB throttles or their time is up.
        """
        request = RequestNumber(self._writer, next(self._numbers))
        now = self._now()
        kept = list(filter(self._is_kept, messages))
        delayed = [message for message in kept if now - message.timestamp > DELAYED_MS]
        unmarked = self._mark(delayed, tenant, now)
        delayed_ids = {message.id for message in delayed}
        items: list[PricedItem] = []
        for message in kept:
            items += self._items(message, tenant, request)
            if message.id in delayed_ids:
                items.append(self._delayed_item(message, tenant, now))
        return self._put(items) | unmarked

    def mark_delayed(self, messages: Iterable[Message], tenant: str | None) -> frozenset[str]:
        """Note that messages which `append` has stored will be sent after later ones.

        Returns the ids of those that could not be noted: a resume may miss them.
        """
        now = self._now()
        kept = list(filter(self._is_kept, messages))
        unmarked = self._mark(kept, tenant, now)
        items = [self._delayed_item(message, tenant, now) for message in kept]
        return self._put(items) | unmarked

    def _mark(self, delayed: Sequence[Message], tenant: str | None, now: EpochMs) -> frozenset[str]:
        """Have the tenant's marker cover the delays that are about to be noted at `now`.

        Returns the ids of the messages if that failed: no resume would look for them.
        """
        if not delayed or self._marked.get(tenant, 0) >= now:
            return frozenset()
        move, until = move_marker(self._table, tenant, now, self.seconds)
        try:
            self._store.update(move)
        except Cancelled as cancelled:
            [marker] = cancelled.items
            assert marker is not None  # noqa: S101 - it has one condition, which failed
            until = marked_until(marker)
        except Unavailable as error:
            ids = frozenset(message.id for message in delayed)
            logger.warning(
                "delays could not be noted: %s", error.detail, extra={"messageIds": sorted(ids)}
            )
            return ids
        self._marked[tenant] = until
        return frozenset()

    def _is_kept(self, message: Message) -> bool:
        kind = message.audience.kind
        return self.seconds > 0 and message.stored and kind is not AudienceKind.CONNECTIONS

    def _items(
        self, message: Message, tenant: str | None, request: RequestNumber
    ) -> list[PricedItem]:
        match message.audience.kind:
            case AudienceKind.USERS:
                streams = [user_stream(tenant, name) for name in names_of(message)]
            case AudienceKind.GROUPS:
                streams = [group_stream(tenant, name) for name in names_of(message)]
            case _:
                streams = [everyone_stream(tenant)]
        item = stored_item(message, request, self._encryption)
        item["expiresAt"] = self._expires_at()
        copies = copies_per_name(message)
        return [PricedItem({"stream": {"S": stream}, **item}, copies) for stream in streams]

    def _delayed_item(self, message: Message, tenant: str | None, now: EpochMs) -> PricedItem:
        """Return a reference to a delayed message. It has less than a KB: it is one copy."""
        reference = delayed_item(message, tenant, now, len(encode(message.data)))
        return PricedItem({**reference, "expiresAt": self._expires_at()}, 1)

    def _expires_at(self) -> Any:
        last_needed = EpochMs(self._now() + REACH_BACK_MS)
        return number(history_expires_at(last_needed, self.seconds))

    def _put(self, items: Sequence[PricedItem]) -> frozenset[str]:
        """Write items; return the ids of the messages of those that are not written."""
        unwritten = self._paced_writer.write(items)
        ids = frozenset(item["position"]["S"][-CHARACTERS:] for item in unwritten)
        if ids:
            logger.warning("no room in the history", extra={"messageIds": sorted(ids)})
        return ids

    # --- Reads

    def first_page(self, stream: str, since: EpochMs) -> StreamPage:
        """Return the first page of a stream from `since` on, for `read`."""
        return self._page(stream, since, PAGE_ITEMS)

    def read(
        self,
        stream: str,
        since: EpochMs,
        page_bytes: int = PAGE_BYTES,
        first: StreamPage | None = None,
    ) -> Iterator[StoredMessage]:
        """Yield the messages of a stream whose ids were made from `since` on, by id.

        Args:
            stream: One of those that `schema` names.
            since: The time of the first id.
            page_bytes: The most that waits in memory, unless a single message is larger. The rest
                of a larger page is dropped and read again, in pages of about the right size.
            first: The first page, if it has been read. Its messages are taken out of it.
        """
        items = PAGE_ITEMS
        page = first or self._page(stream, since, items)
        while True:
            messages = page.messages
            if _cut(messages, page_bytes):
                items = len(messages)
            elif page.ends:
                yield from messages
                return
            else:
                items = min(PAGE_ITEMS, items * 2)
            after = messages[-1].id
            while messages:
                yield messages.popleft()
            page = self._page(stream, since, items, after)

    def may_be_delayed(self, page: StreamPage, since: EpochMs) -> bool:
        """Return whether a delay may have been noted from `since` on in a tenant.

        `page` is one of its stream of messages to everyone.
        """
        if page.others is None:
            return True
        return any(marked_until(item) >= since for item in page.others if _is_marker(item))

    def delayed(self, tenant: str | None, since: EpochMs) -> Iterator[DelayedMessage]:
        """Yield references to the messages in a tenant whose delay was noted from `since` on."""
        position = delayed_position(since)
        for page in self._pages(delayed_stream(tenant), position, DELAYED_PAGE_ITEMS):
            yield from map(delayed_message, page.items)

    def find(self, streams: Sequence[str], ids: Sequence[str]) -> list[StoredMessage]:
        """Return the messages with these ids, each if its stream has it. The pairs are unique."""
        found = self._store.batch_get_keys(self._table, _keys(streams, ids))
        return [stored_message(item) for page in found for item in page]

    def request_of(self, message_id: str, streams: Sequence[str]) -> RequestNumber | None:
        """Return the request of a message that is in any of these streams, or else None."""
        found = self._store.batch_get_keys(
            self._table,
            _keys(streams, [message_id] * len(streams)),
            ProjectionExpression="turn",
        )
        return next((request_number(item["turn"]["S"]) for page in found for item in page), None)

    def text(self, stored: StoredMessage) -> bytes:
        """Return the text that frames have of a message. See `StoredMessage.text`."""
        return stored.text(self._encryption)

    def _page(
        self, stream: str, since: EpochMs, items: int, after: str | None = None
    ) -> StreamPage:
        """Return a page of so many items: the first one, or the one after an id."""
        start = None if after is None else _key(stream, after)
        page = next(self._pages(stream, earliest(since), items, start))
        count = sum(item["position"]["S"] < AFTER_MESSAGES for item in page.items)
        return StreamPage(
            deque(map(stored_message, page.items[:count])),
            page.position is None or count < len(page.items),
            page.items[count:] if page.position is None else None,
        )

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


def _cut(messages: deque[StoredMessage], most_bytes: int) -> bool:
    """Drop the last messages until the others have at most so many bytes, or one is left.

    Returns whether any was dropped.
    """
    size, count = sum(len(one.content) for one in messages), len(messages)
    while size > most_bytes and len(messages) > 1:
        size -= len(messages.pop().content)
    return len(messages) < count


def _keys(streams: Iterable[str], ids: Iterable[str]) -> list[Item]:
    return [_key(stream, one) for stream, one in zip(streams, ids, strict=True)]


def _key(stream: str, position: str) -> Item:
    return {"stream": {"S": stream}, "position": {"S": position}}


def _is_marker(item: Item) -> bool:
    return bool(item["position"]["S"] == DELAYED_MARKER_POSITION)
