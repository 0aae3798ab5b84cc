"""Find the recipients of audiences, page by page.

Every page says where it ends, and another reader can go on from there: the order of reading
depends on the tables alone, and a reader needs nothing of the pages before.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from enum import StrEnum
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple

from chalicelib.auth.principal import group_key, user_key
from chalicelib.protocol.audience import Audience, AudienceKind, Selector
from chalicelib.store.dynamodb import MAX_BATCH_GET, Store
from chalicelib.store.items import Recipient, recipients_of, stored_recipient
from chalicelib.store.schema import ROSTER_SHARDS, connection_key, roster_group, roster_shard
from chalicelib.store.sorted_streams import (
    FoundPage,
    Read,
    SortedStream,
    connection_id_of,
    merged,
)

PAGE_ITEMS = 1024
"""Limits the memory that a page takes, not the cost of a read. An audience that inline delivery can
reach (`HERALD_INLINE_RECIPIENTS`) fits into one page, so that it is known to be complete."""
SPREAD = 1.5  # of the first read of each stream: the shards of a roster differ in size
USER, CONNECTION = "1", "2"  # in this order: a connection found by its user needs no look-up
CONNECTIONS_PER_USER = 10  # the default limit of a user's connections


class Source(StrEnum):
    """The place where an audience's recipients are read. It determines what a position is."""

    EVERYONE = "everyone"
    """A tenant's roster, and the members of groups beside it, ordered by connection id; a position
    is a connection id. Jobs for everyone and jobs for groups are not batched together: the few
    members of a group would wait for everyone."""
    GROUPS = "groups"
    """Members of groups, and the users and connections named beside them, ordered by connection
    id; a position is a connection id."""
    NAMES = "names"
    """Named users, then named connections; a position is one of these names."""


class Shard(NamedTuple):
    """A part of an audience: shard `number` of `shards`, starting after the position `after`.

    Only EVERYONE is read in more than one shard: in up to ROSTER_SHARDS, a power of two.
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


class Audiences:
    """A finder of audiences' connections, always within one tenant."""

    def __init__(self, store: Store, readers: Executor | None = None) -> None:
        """Take the parts. `readers` reads the shards of a roster side by side; without it, they are
        read one after the other."""
        self._store = store
        self._readers = readers

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
            case Source.NAMES:
                pages = self._named(selector, tenant, shard.after, page_items)
            case _:
                pages = self._sorted(selector, tenant, shard, page_items)
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

    def _sorted(
        self, selector: Selector, tenant: str | None, shard: Shard, page_items: int
    ) -> Iterator[FoundPage]:
        """Merge groups and the roster, which DynamoDB sorts by connection id, so that a connection
        in several of them is found once."""
        roster: list[Read] = []
        named: list[Read] = []
        if selector.for_all:
            # The roster has every connection that could be named.
            numbers = range(shard.number, ROSTER_SHARDS, shard.shards)
            roster = [partial(self._read, roster_group(tenant, one), 0) for one in numbers]
        elif selector.for_users or selector.for_connections:
            named = [partial(self._read_named, selector, tenant)]
        groups: list[Read] = [
            partial(self._read_members, group_key(tenant, group), selection, shard)
            for group, selection in selector.for_groups.items()
        ]
        sources = len([*groups, *roster])
        first_items = max(10, round(page_items * SPREAD / sources)) if sources > 1 else page_items

        def stream(read: Read, page_items: int) -> SortedStream:
            return SortedStream(read, after=shard.after, first=first_items, most=page_items)

        in_turn = [stream(read, first_items) for read in [*named, *groups]]
        side_by_side = [stream(read, max(first_items, page_items)) for read in roster]
        for found, position in merged(in_turn, side_by_side, self._readers):
            for start in range(0, max(1, len(found)), page_items):
                page = found[start : start + page_items]
                is_last = start + page_items >= len(found)
                yield page, position if is_last else page[-1][0].connection_id

    def _read_named(
        self, selector: Selector, tenant: str | None, after: str, _items: int
    ) -> FoundPage:
        found = [
            one
            for page, _ in self._named(selector, tenant, "", PAGE_ITEMS)
            for one in page
            if one[0].connection_id > after
        ]
        return sorted(found, key=connection_id_of), None

    def _read_members(
        self, group: str, selection: int, shard: Shard, after: str, items: int
    ) -> FoundPage:
        """Read the members of a group that are in this shard of the roster."""
        found, position = self._read(group, selection, after, items)
        if shard.shards > 1:
            found = [
                one
                for one in found
                if roster_shard(one[0].connection_id) % shard.shards == shard.number
            ]
        return found, position

    def _read(self, group: str, selection: int, after: str, items: int) -> FoundPage:
        query: dict[str, Any] = {}
        if after:
            query["ExclusiveStartKey"] = {"group": {"S": group}, **connection_key(after)}
        pages = self._store.query(
            self._store.tables.groups,
            KeyConditionExpression="#group = :group",
            ProjectionExpression="connectionId, userId, tenant, reach",
            ExpressionAttributeNames={"#group": "group"},
            ExpressionAttributeValues={":group": {"S": group}},
            ConsistentRead=True,  # a client that has just connected is part of the audience
            Limit=items,
            **query,
        )
        page = next(pages)
        position = None if page.position is None else page.position["connectionId"]["S"]
        return [(stored_recipient(item), selection) for item in page.items], position

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
