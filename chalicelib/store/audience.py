"""Whom messages are for: audiences in, a stream of recipients out, page by page.

Each page says where it ends, so that another may go on from there: what is read is in an order of
its own, whoever reads it, and nothing of the pages before has to be remembered.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from heapq import merge
from itertools import groupby, islice
from operator import or_
from typing import Any, NamedTuple

from chalicelib.auth.principal import group_key, user_key
from chalicelib.protocol.messages import Audience, AudienceKind
from chalicelib.store.dynamodb import MAX_BATCH_GET, Store
from chalicelib.store.items import (
    Item,
    Recipient,
    groups_of,
    recipients_of,
    stored_recipient,
)

PAGE_ITEMS = 1000  # to a page: what one holds in memory, not what a read costs
USER, CONNECTION = "1", "2"  # as names are sorted: who is found by users need not be looked up
CONNECTIONS_A_NAME = 10  # of users; it is the most that one has by default


class Source(StrEnum):
    """Where the recipients of an audience are read, which says how a position in it is written."""

    EVERYONE = "everyone"
    """A scan of the connections, in DynamoDB's order; a position is a connection's id."""
    GROUPS = "groups"
    """Members of groups, and whoever is named beside them, in the order of connection ids."""
    NAMES = "names"
    """Named connections and users, in the order of these names; a position is one of them."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What is read of an audience: shard `number` of `shards`, but for what is up to `after`.

    There are several shards of EVERYONE alone.
    """

    number: int = 0
    shards: int = 1
    after: str = ""


WHOLE = Shard()


class Page(NamedTuple):
    """Recipients, each with the selection of the messages that are for it: bit n is the n-th's.

    `position` is where the page ends; None when no other follows.
    """

    recipients: list[tuple[Recipient, int]]
    position: str | None


def source_of(audiences: Sequence[Audience]) -> Source:
    """Where the recipients of messages with these audiences are read."""
    kinds = {audience.kind for audience in audiences}
    if AudienceKind.ALL in kinds:
        return Source.EVERYONE
    return Source.GROUPS if AudienceKind.GROUPS in kinds else Source.NAMES


class Selector:
    """Which of a request's messages are for a connection."""

    def __init__(self, audiences: Sequence[Audience]) -> None:
        self.for_all = 0
        self.for_users: defaultdict[str, int] = defaultdict(int)
        self.for_groups: defaultdict[str, int] = defaultdict(int)
        self.for_connections: defaultdict[str, int] = defaultdict(int)
        self._not_users: defaultdict[str, int] = defaultdict(int)
        self._not_connections: defaultdict[str, int] = defaultdict(int)
        for index, audience in enumerate(audiences):
            bit = 1 << index
            match audience.kind:
                case AudienceKind.ALL:
                    self.for_all |= bit
                case AudienceKind.USERS:
                    _mark(self.for_users, audience.names, bit)
                case AudienceKind.CONNECTIONS:
                    _mark(self.for_connections, audience.names, bit)
                case AudienceKind.GROUPS:
                    _mark(self.for_groups, audience.names, bit)
            _mark(self._not_users, audience.except_users, bit)
            _mark(self._not_connections, audience.except_connections, bit)

    def of_groups(self, groups: Iterable[str]) -> int:
        """The messages for whoever is in these groups: bit n is set for the n-th."""
        return reduce(or_, (self.for_groups.get(group, 0) for group in groups), 0)

    def select(self, recipient: Recipient, by_groups: int) -> int:
        """The messages for `recipient`, of which `by_groups` are its groups'."""
        user_id, connection_id = recipient.user_id, recipient.connection_id
        wanted = (
            self.for_all
            | by_groups
            | self.for_users.get(user_id, 0)
            | self.for_connections.get(connection_id, 0)
        )
        unwanted = self._not_users.get(user_id, 0) | self._not_connections.get(connection_id, 0)
        return wanted & ~unwanted


Found = tuple[Recipient, int]
"""A recipient and the messages that are its groups'."""

FoundPage = tuple[list[Found], str | None]


class Audiences:
    """Finds the connections of audiences, within one tenant and nowhere else."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def pages(
        self,
        audiences: Sequence[Audience],
        tenant: str | None,
        shard: Shard = WHOLE,
        page_items: int = PAGE_ITEMS,
    ) -> Iterator[Page]:
        """Each live connection of `tenant` that an audience names, once, less its exceptions.

        Reads as it is consumed, up to `page_items` at a time; only who is named beside groups is
        read at once. Raises Unavailable when storage is, at any page.
        """
        selector = Selector(audiences)
        for found, position in self._found(
            selector, source_of(audiences), tenant, shard, page_items
        ):
            # A connection of another tenant is no recipient, whatever found it.
            selected = [
                (recipient, selector.select(recipient, by_groups))
                for recipient, by_groups in found
                if recipient.tenant == tenant
            ]
            yield Page([one for one in selected if one[1]], position)

    def of_users(self, user_ids: Sequence[str], tenant: str | None) -> Iterator[list[Recipient]]:
        """The connections of users, as their own items have them."""
        by_key = {user_key(tenant, user_id): user_id for user_id in user_ids}
        for items in self._store.batch_get(self._store.tables.users, "user", list(by_key)):
            yield [
                recipient
                for item in items
                for recipient in recipients_of(item, by_key[item["user"]["S"]], tenant)
            ]

    def _found(
        self, selector: Selector, source: Source, tenant: str | None, shard: Shard, page_items: int
    ) -> Iterator[FoundPage]:
        match source:
            case Source.EVERYONE:
                return self._everyone(selector, tenant, shard, page_items)
            case Source.GROUPS:
                return self._grouped(selector, tenant, shard.after, page_items)
            case Source.NAMES:
                return self._named(selector, tenant, shard.after, page_items)

    def _everyone(
        self, selector: Selector, tenant: str | None, shard: Shard, page_items: int
    ) -> Iterator[FoundPage]:
        def by_groups(item: Item) -> int:
            return selector.of_groups(groups_of(item)) if selector.for_groups else 0

        query: dict[str, Any] = {"FilterExpression": "attribute_not_exists(tenant)"}
        if tenant is not None:
            query["FilterExpression"] = "tenant = :tenant"
            query["ExpressionAttributeValues"] = {":tenant": {"S": tenant}}
        if shard.shards > 1:
            query |= {"Segment": shard.number, "TotalSegments": shard.shards}
        if shard.after:
            query["ExclusiveStartKey"] = {"connectionId": {"S": shard.after}}
        pages = self._store.scan(
            self._store.tables.connections,
            ProjectionExpression="connectionId, userId, tenant, reach, #groups",
            ExpressionAttributeNames={"#groups": "groups"},
            ConsistentRead=True,  # a client that has just connected is part of the audience
            Limit=page_items,
            **query,
        )
        for page in pages:
            found = [
                (stored_recipient(item), by_groups(item))
                for item in page.items
                if "reach" in item  # an item that is not Herald's must not fail the rest
            ]
            yield found, _connection_id_of(page.position)

    def _grouped(
        self, selector: Selector, tenant: str | None, after: str, page_items: int
    ) -> Iterator[FoundPage]:
        """Groups are sorted by their members' connection ids: reading them side by side, each
        member is met once, however many groups it is in."""
        if len(selector.for_groups) == 1 and not (selector.for_users or selector.for_connections):
            [(group, by_groups)] = selector.for_groups.items()
            for members, position in self._members(group, tenant, after, page_items):
                yield [(member, by_groups) for member in members], position
            return
        named = (
            (recipient, 0)
            for page, _ in self._named(selector, tenant, "", page_items)
            for recipient, _ in page
            if recipient.connection_id > after
        )
        at_once = max(10, page_items // len(selector.for_groups))

        def stream(group: str, bits: int) -> Iterator[Found]:
            for members, _ in self._members(group, tenant, after, at_once):
                yield from ((member, bits) for member in members)

        streams = [stream(group, bits) for group, bits in selector.for_groups.items()]
        side_by_side = merge(sorted(named, key=_connection_id), *streams, key=_connection_id)
        once = (
            (same[0][0], reduce(or_, (bits for _, bits in same)))
            for same in (list(same) for _, same in groupby(side_by_side, key=_connection_id))
        )
        while page := list(islice(once, page_items)):
            yield page, page[-1][0].connection_id

    def _members(
        self, group: str, tenant: str | None, after: str, page_items: int
    ) -> Iterator[tuple[list[Recipient], str | None]]:
        key = group_key(tenant, group)
        query: dict[str, Any] = {}
        if after:
            query["ExclusiveStartKey"] = {"group": {"S": key}, "connectionId": {"S": after}}
        pages = self._store.query(
            self._store.tables.groups,
            KeyConditionExpression="#group = :group",
            ExpressionAttributeNames={"#group": "group"},
            ExpressionAttributeValues={":group": {"S": key}},
            ConsistentRead=True,
            Limit=page_items,
            **query,
        )
        for page in pages:
            members = [stored_recipient(item) for item in page.items]
            yield members, _connection_id_of(page.position)

    def _named(
        self, selector: Selector, tenant: str | None, after: str, page_items: int
    ) -> Iterator[FoundPage]:
        names = sorted(
            name
            for name in (
                *(f"{USER}/{user_id}" for user_id in selector.for_users),
                *(f"{CONNECTION}/{connection_id}" for connection_id in selector.for_connections),
            )
            if name > after
        )
        at_once = min(MAX_BATCH_GET, max(1, page_items // CONNECTIONS_A_NAME))
        met: set[str] = set()
        for kind, same in groupby(names, key=lambda name: name.partition("/")[0]):
            while batch := list(islice(same, at_once)):
                ids = [name.partition("/")[2] for name in batch]
                if kind == USER:
                    found = [one for page in self.of_users(ids, tenant) for one in page]
                    met.update(one.connection_id for one in found)
                else:
                    found = self._by_id([one for one in ids if one not in met])
                    if after:  # who went before this reader has met others
                        known = {one.user_id for one in found} & selector.for_users.keys()
                        pages = self.of_users(sorted(known), tenant)
                        met.update(one.connection_id for page in pages for one in page)
                        found = [one for one in found if one.connection_id not in met]
                position = None if batch[-1] == names[-1] else batch[-1]
                yield [(recipient, 0) for recipient in found], position

    def _by_id(self, ids: Sequence[str]) -> list[Recipient]:
        table = self._store.tables.connections
        return [
            stored_recipient(item)
            for items in self._store.batch_get(table, "connectionId", ids)
            for item in items
            if "reach" in item
        ]


def _connection_id_of(key: Item | None) -> str | None:
    return None if key is None else key["connectionId"]["S"]


def _connection_id(found: Found) -> str:
    return found[0].connection_id


def _mark(selections: defaultdict[str, int], names: Iterable[str], bit: int) -> None:
    for name in names:
        selections[name] |= bit
