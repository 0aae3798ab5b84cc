"""Find the recipients of audiences, page by page.

Every page says where it ends, and another reader can go on from there: the order of reading
depends on the tables alone, and a reader needs nothing of the pages before.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import reduce
from heapq import merge
from itertools import groupby, islice
from operator import or_
from typing import Any, NamedTuple

from chalicelib.auth.principal import group_key, user_key
from chalicelib.protocol.audience import Audience, AudienceKind, Selector
from chalicelib.store.dynamodb import MAX_BATCH_GET, Store
from chalicelib.store.items import Recipient, groups_of, recipients_of, stored_recipient
from chalicelib.store.schema import Item, connection_key, membership_key

PAGE_ITEMS = 1000  # limits the memory that a page takes, not the cost of a read
USER, CONNECTION = "1", "2"  # in this order: a connection found by its user needs no look-up
CONNECTIONS_PER_USER = 10  # the default limit of a user's connections


class Source(StrEnum):
    """The place where an audience's recipients are read. It determines what a position is."""

    EVERYONE = "everyone"
    """A scan of the connections table, in DynamoDB's order; a position is a connection id."""
    GROUPS = "groups"
    """Members of groups, and the users and connections named beside them, ordered by connection
    id; a position is a connection id."""
    NAMES = "names"
    """Named users, then named connections; a position is one of these names."""


class Shard(NamedTuple):
    """A part of an audience: shard `number` of `shards`, starting after the position `after`.

    Only EVERYONE is read in more than one shard.
    """

    number: int = 0
    shards: int = 1
    after: str = ""


WHOLE = Shard()


class Page(NamedTuple):
    """A page of recipients, each with its selection (see `protocol.audience`).

    `position` is where the page ends; None on the last page.
    """

    recipients: list[tuple[Recipient, int]]
    position: str | None


def source_of(audiences: Sequence[Audience]) -> Source:
    """Return where the recipients of messages with these audiences are read."""
    kinds = {audience.kind for audience in audiences}
    if AudienceKind.ALL in kinds:
        return Source.EVERYONE
    return Source.GROUPS if AudienceKind.GROUPS in kinds else Source.NAMES


_Found = tuple[Recipient, int]
"""A recipient and the selection for its groups."""

_FoundPage = tuple[list[_Found], str | None]


class Audiences:
    """A finder of audiences' connections, always within one tenant."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def pages(
        self,
        audiences: Sequence[Audience],
        tenant: str | None,
        shard: Shard = WHOLE,
        page_items: int = PAGE_ITEMS,
    ) -> Iterator[Page]:
        """Yield the live connections of `tenant` that the audiences address, each once.

        A page is read when it is asked for, and has up to `page_items` recipients. Users and
        connections named beside groups are the exception: they are all read with the first page.
        Each page can raise Unavailable.
        """
        selector = Selector(audiences)
        match source_of(audiences):
            case Source.EVERYONE:
                pages = self._everyone(selector, tenant, shard, page_items)
            case Source.GROUPS:
                pages = self._grouped(selector, tenant, shard.after, page_items)
            case Source.NAMES:
                pages = self._named(selector, tenant, shard.after, page_items)
        for found, position in pages:
            # Whatever read found it, a connection of another tenant is never a recipient.
            selected = [
                (
                    recipient,
                    selector.select(recipient.user_id, recipient.connection_id, by_groups),
                )
                for recipient, by_groups in found
                if recipient.tenant == tenant
            ]
            yield Page([one for one in selected if one[1]], position)

    def of_users(self, user_ids: Sequence[str], tenant: str | None) -> Iterator[list[Recipient]]:
        """Yield the connections of users, as the users' own items list them."""
        by_key = {user_key(tenant, user_id): user_id for user_id in user_ids}
        for items in self._store.batch_get(self._store.tables.users, "user", list(by_key)):
            yield [
                recipient
                for item in items
                for recipient in recipients_of(item, by_key[item["user"]["S"]], tenant)
            ]

    def _everyone(
        self, selector: Selector, tenant: str | None, shard: Shard, page_items: int
    ) -> Iterator[_FoundPage]:
        def by_groups(item: Item) -> int:
            return selector.of_groups(groups_of(item)) if selector.for_groups else 0

        query: dict[str, Any] = {"FilterExpression": "attribute_not_exists(tenant)"}
        if tenant is not None:
            query["FilterExpression"] = "tenant = :tenant"
            query["ExpressionAttributeValues"] = {":tenant": {"S": tenant}}
        if shard.shards > 1:
            query |= {"Segment": shard.number, "TotalSegments": shard.shards}
        if shard.after:
            query["ExclusiveStartKey"] = connection_key(shard.after)
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
                if "reach" in item  # an item that Herald did not write must not fail the rest
            ]
            yield found, _connection_id_of(page.position)

    def _grouped(
        self, selector: Selector, tenant: str | None, after: str, page_items: int
    ) -> Iterator[_FoundPage]:
        """Merge the groups, which DynamoDB sorts by connection id, so that a member of several
        groups is found once."""
        if len(selector.for_groups) == 1 and not (selector.for_users or selector.for_connections):
            [(group, selection)] = selector.for_groups.items()
            for members, position in self._members(group, tenant, after, page_items):
                yield [(member, selection) for member in members], position
            return
        named = (
            (recipient, 0)
            for page, _ in self._named(selector, tenant, "", page_items)
            for recipient, _ in page
            if recipient.connection_id > after
        )
        members_per_read = max(10, page_items // len(selector.for_groups))

        def stream(group: str, selection: int) -> Iterator[_Found]:
            for members, _ in self._members(group, tenant, after, members_per_read):
                yield from ((member, selection) for member in members)

        streams = [stream(group, selection) for group, selection in selector.for_groups.items()]
        merged = merge(sorted(named, key=_connection_id), *streams, key=_connection_id)
        unique = (
            (same[0][0], reduce(or_, (selection for _, selection in same)))
            for same in (list(same) for _, same in groupby(merged, key=_connection_id))
        )
        while page := list(islice(unique, page_items)):
            yield page, page[-1][0].connection_id

    def _members(
        self, group: str, tenant: str | None, after: str, page_items: int
    ) -> Iterator[tuple[list[Recipient], str | None]]:
        query: dict[str, Any] = {}
        if after:
            query["ExclusiveStartKey"] = membership_key(tenant, group, after)
        pages = self._store.query(
            self._store.tables.groups,
            KeyConditionExpression="#group = :group",
            ProjectionExpression="connectionId, userId, tenant, reach",
            ExpressionAttributeNames={"#group": "group"},
            ExpressionAttributeValues={":group": {"S": group_key(tenant, group)}},
            ConsistentRead=True,
            Limit=page_items,
            **query,
        )
        for page in pages:
            members = [stored_recipient(item) for item in page.items]
            yield members, _connection_id_of(page.position)

    def _named(
        self, selector: Selector, tenant: str | None, after: str, page_items: int
    ) -> Iterator[_FoundPage]:
        names = sorted(
            name
            for name in (
                *(f"{USER}/{user_id}" for user_id in selector.for_users),
                *(f"{CONNECTION}/{connection_id}" for connection_id in selector.for_connections),
            )
            if name > after
        )
        batch_size = min(MAX_BATCH_GET, max(1, page_items // CONNECTIONS_PER_USER))
        found_by_user: set[str] = set()
        for kind, same in groupby(names, key=lambda name: name.partition("/")[0]):
            while batch := list(islice(same, batch_size)):
                ids = [name.partition("/")[2] for name in batch]
                if kind == USER:
                    found = [one for page in self.of_users(ids, tenant) for one in page]
                    found_by_user.update(one.connection_id for one in found)
                else:
                    found = self._by_id([one for one in ids if one not in found_by_user])
                    if after:  # an earlier reader found the users, which this one has not read
                        user_ids = {one.user_id for one in found} & selector.for_users.keys()
                        pages = self.of_users(sorted(user_ids), tenant)
                        found_by_user.update(one.connection_id for page in pages for one in page)
                        found = [one for one in found if one.connection_id not in found_by_user]
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


def _connection_id(found: _Found) -> str:
    return found[0].connection_id
