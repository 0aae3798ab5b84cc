"""What was sent of late, for whoever was away: streams of messages, each in the order of its ids.

A message is kept once for each name of its audience, whatever the number of its recipients. In the
history table, `position` orders what a `stream` holds:

- `user/<user>`, `group/<group>` and `all/<tenant>`: the messages to each; a position is an id;
- `late/<tenant>`: those that reach their recipients long after their ids were made, since they wait
  in the queue, or in a second try of a request; a position is the time at which that was known, and
  the id.

A message is kept before its recipients are looked up. So who connects is found, or finds it here.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple
from uuid import uuid4

from chalicelib import aws_limits
from chalicelib.auth.principal import group_key, user_key
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import AudienceKind, Message
from chalicelib.protocol.strict_json import encode, parse_json
from chalicelib.protocol.ulid import CHARACTERS, earliest
from chalicelib.store.dynamodb import MAX_BATCH_WRITE, Store
from chalicelib.store.expressions import number
from chalicelib.store.items import Item

CLOCK_MS = 1000  # by which the clocks of two handlers may differ
LATE_MS = 1000  # from an id to where its message is kept: what takes longer is late
REACH_BACK_MS = LATE_MS + aws_limits.HANDLER_MS + CLOCK_MS
"""A message may reach a connection after another whose id is so much later, but not more."""

PAGE_ITEMS = 200
MOMENT_CHARACTERS = 10  # of an id: the rest is chance
THREADS = 8


class Turn(NamedTuple):
    """When a message was sent, as far as its writer knows: `writer` sends one request after the
    other, and `number` counts them."""

    writer: str
    number: int

    def precedes(self, other: "Turn") -> bool:
        """Whether a message with a lower id was sent before one of `other`, for certain. In one
        request it was: to each connection they go in order, and none follows one that failed."""
        return self.writer == other.writer and self.number <= other.number


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in a stream, not yet unpacked."""

    id: str
    turn: Turn
    content: bytes
    sealed: bool


class History:
    """The messages of the last `seconds`. All methods raise Unavailable when storage is; `now` is
    in epoch milliseconds."""

    def __init__(
        self,
        store: Store,
        *,
        seconds: int,
        encryption: Encryption,
        now: Callable[[], int],
    ) -> None:
        """With 0 `seconds`, nothing is kept."""
        self.seconds = seconds
        self._store = store
        self._table = store.tables.history
        self._encryption = encryption
        self._now = now
        self._writer = uuid4().hex[:12]
        self._numbers = count()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="history")

    def keep(self, messages: Sequence[Message], tenant: str | None) -> None:
        """Keep the messages of one request that may be kept, before any of them is sent."""
        turn = Turn(self._writer, next(self._numbers))
        now = self._now()
        items: list[Item] = []
        for message in filter(self._is_kept, messages):
            items += self._in_streams(message, tenant, turn)
            if now - message.timestamp > LATE_MS:
                items.append(self._late(message, tenant, turn, now))
        self._put(items)

    def delay(self, messages: Sequence[Message], tenant: str | None) -> None:
        """Note that messages which are kept will be sent later than others."""
        turn = Turn(self._writer, next(self._numbers))
        now = self._now()
        self._put(
            [self._late(message, tenant, turn, now) for message in filter(self._is_kept, messages)]
        )

    def of_user(self, tenant: str | None, user_id: str, since: int) -> Iterator[Entry]:
        """What was sent to a user from `since` on (epoch milliseconds)."""
        return self._read(_user(tenant, user_id), earliest(since))

    def of_group(self, tenant: str | None, group: str, since: int) -> Iterator[Entry]:
        """What was sent to a group."""
        return self._read(_group(tenant, group), earliest(since))

    def of_all(self, tenant: str | None, since: int) -> Iterator[Entry]:
        """What was sent to everybody of a tenant."""
        return self._read(_all(tenant), earliest(since))

    def late(self, tenant: str | None, since: int) -> Iterator[Entry]:
        """What has been sent late from `since` on, to anybody."""
        return self._read(_late(tenant), earliest(since)[:MOMENT_CHARACTERS])

    def open(self, entry: Entry) -> Message:
        """An entry's message. That of a stream with a name does not have the names of its audience.

        Raises KeyError when it is encrypted and its master key is not there any more.
        """
        content = (
            self._encryption.unseal(entry.content)
            if entry.sealed
            else zlib.decompress(entry.content)
        )
        fields: Any = parse_json(content.decode())
        return Message.from_dict(fields)

    def _is_kept(self, message: Message) -> bool:
        kind = message.audience.kind
        return self.seconds > 0 and message.stored and kind is not AudienceKind.CONNECTIONS

    def _in_streams(self, message: Message, tenant: str | None, turn: Turn) -> list[Item]:
        audience = message.audience
        match audience.kind:
            case AudienceKind.USERS:
                wanted = (name for name in audience.names if name not in audience.except_users)
                streams = [_user(tenant, name) for name in wanted]
            case AudienceKind.GROUPS:
                streams = [_group(tenant, name) for name in audience.names]
            case _:
                streams = [_all(tenant)]
        nameless = replace(message, audience=replace(audience, names=()))
        item = self._item(nameless, turn, message.id)
        return [{"stream": {"S": stream}, **item} for stream in streams]

    def _late(self, message: Message, tenant: str | None, turn: Turn, now: int) -> Item:
        item = self._item(message, turn, earliest(now)[:MOMENT_CHARACTERS] + message.id)
        return {"stream": {"S": _late(tenant)}, **item}

    def _item(self, message: Message, turn: Turn, position: str) -> Item:
        content = encode(message.to_dict())
        seal = self._encryption.seal
        return {
            "position": {"S": position},
            "turn": {"S": f"{turn.writer}/{turn.number}"},
            # Not both: how well it compressed would say something of what is encrypted.
            **(
                {"sealed": {"B": seal(content)}}
                if message.encrypted
                else {"packed": {"B": zlib.compress(content)}}
            ),
            "expiresAt": number((self._now() + REACH_BACK_MS) // 1000 + self.seconds + 1),
        }

    def _put(self, items: Sequence[Item]) -> None:
        batches = [
            items[start : start + MAX_BATCH_WRITE]
            for start in range(0, len(items), MAX_BATCH_WRITE)
        ]
        if len(batches) == 1:
            self._store.batch_put(self._table, batches[0])
            return
        # All are waited for, whichever fails: none shall be written after the answer.
        writes = [
            self._threads.submit(self._store.batch_put, self._table, batch) for batch in batches
        ]
        errors = [error for write in writes if (error := write.exception()) is not None]
        for error in errors:
            raise error

    def _read(self, stream: str, position: str) -> Iterator[Entry]:
        pages = self._store.query(
            self._table,
            KeyConditionExpression="#stream = :stream AND #position >= :position",
            ExpressionAttributeNames={"#stream": "stream", "#position": "position"},
            ExpressionAttributeValues={":stream": {"S": stream}, ":position": {"S": position}},
            ConsistentRead=True,  # what was kept just before may be what was missed
            Limit=PAGE_ITEMS,
        )
        for page in pages:
            yield from map(_entry, page.items)


def _entry(item: Item) -> Entry:
    writer, _, turn = item["turn"]["S"].partition("/")
    sealed = "sealed" in item
    return Entry(
        item["position"]["S"][-CHARACTERS:],
        Turn(writer, int(turn)),
        item["sealed" if sealed else "packed"]["B"],
        sealed,
    )


def _user(tenant: str | None, user_id: str) -> str:
    return f"user/{user_key(tenant, user_id)}"


def _group(tenant: str | None, group: str) -> str:
    return f"group/{group_key(tenant, group)}"


def _all(tenant: str | None) -> str:
    return f"all/{user_key(tenant, '')}"


def _late(tenant: str | None) -> str:
    return f"late/{user_key(tenant, '')}"
