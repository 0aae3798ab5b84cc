"""Whom messages are for: audiences in, a stream of recipients out, page by page."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from chalicelib.messages import Audience, AudienceKind
from chalicelib.principal import group_key, user_key
from chalicelib.records import Item, Recipient, Tables, groups_of, recipients_of, stored_recipient
from chalicelib.storage import batch_get, reaching_storage

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

PAGE_ITEMS = 1000  # to a page: what one holds in memory, not what a read costs

Page = list[tuple[Recipient, int]]
"""Recipients, each with the selection of the messages that are for it: bit n is the n-th's."""


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


class Audiences:
    """Finds the connections of audiences, within one tenant and nowhere else."""

    def __init__(self, client: "DynamoDBClient", tables: Tables) -> None:
        self._client = client
        self._tables = tables

    def pages(self, audiences: Sequence[Audience], tenant: str | None) -> Iterator[Page]:
        """Each live connection of `tenant` that an audience names, once, less its exceptions.

        Reads as it is consumed, but for several groups at once, whose members have to be known
        before the first can be told apart. Raises Unavailable when storage is, at any page.
        """
        selector = Selector(audiences)
        for found in self._found(selector, tenant):
            # A connection of another tenant is no recipient, whatever found it.
            page = [
                (recipient, selector.select(recipient, by_groups))
                for recipient, by_groups in found
                if recipient.tenant == tenant
            ]
            yield [(recipient, selection) for recipient, selection in page if selection]

    def of_users(self, user_ids: Sequence[str], tenant: str | None) -> Iterator[list[Recipient]]:
        """The connections of users, as their own items have them."""
        by_key = {user_key(tenant, user_id): user_id for user_id in user_ids}
        for items in batch_get(self._client, self._tables.users, "user", list(by_key)):
            yield [
                recipient
                for item in items
                for recipient in recipients_of(item, by_key[item["user"]["S"]], tenant)
            ]

    def _found(self, selector: Selector, tenant: str | None) -> Iterator[list[Found]]:
        if selector.for_all:
            yield from self._everyone(selector, tenant)
        elif len(selector.for_groups) == 1 and not (selector.for_users or selector.for_connections):
            [(group, by_groups)] = selector.for_groups.items()
            for members in self._members(group, tenant):
                yield [(recipient, by_groups) for recipient in members]
        else:
            yield from self._named(selector, tenant)

    def _named(self, selector: Selector, tenant: str | None) -> Iterator[list[Found]]:
        members: dict[str, Found] = {}
        for group, bits in selector.for_groups.items():
            for page in self._members(group, tenant):
                for member in page:
                    _, others = members.get(member.connection_id, (member, 0))
                    members[member.connection_id] = (member, others | bits)
        by_id = dict.fromkeys(selector.for_connections)
        for recipients in self.of_users(list(selector.for_users), tenant):
            yield [members.pop(recipient.connection_id, (recipient, 0)) for recipient in recipients]
            for recipient in recipients:
                by_id.pop(recipient.connection_id, None)
        for connection_id in members:
            by_id.pop(connection_id, None)
        yield list(members.values())
        table = self._tables.connections
        for items in batch_get(self._client, table, "connectionId", list(by_id)):
            yield [(stored_recipient(item), 0) for item in items if "reach" in item]

    def _members(self, group: str, tenant: str | None) -> Iterator[list[Recipient]]:
        pages = self._client.get_paginator("query").paginate(
            TableName=self._tables.groups,
            KeyConditionExpression="#group = :group",
            ExpressionAttributeNames={"#group": "group"},
            ExpressionAttributeValues={":group": {"S": group_key(tenant, group)}},
            ConsistentRead=True,
            PaginationConfig={"PageSize": PAGE_ITEMS},
        )
        with reaching_storage():
            for page in pages:
                yield [stored_recipient(item) for item in page["Items"]]

    def _everyone(self, selector: Selector, tenant: str | None) -> Iterator[list[Found]]:
        def by_groups(item: Item) -> int:
            return selector.of_groups(groups_of(item)) if selector.for_groups else 0

        condition = "attribute_not_exists(tenant)"
        values: dict[str, Any] = {}
        if tenant is not None:
            condition = "tenant = :tenant"
            values = {"ExpressionAttributeValues": {":tenant": {"S": tenant}}}
        pages = self._client.get_paginator("scan").paginate(
            TableName=self._tables.connections,
            ProjectionExpression="connectionId, userId, tenant, reach, #groups",
            FilterExpression=condition,
            ExpressionAttributeNames={"#groups": "groups"},
            ConsistentRead=True,  # who connected just before the message is part of the audience
            PaginationConfig={"PageSize": PAGE_ITEMS},
            **values,
        )
        with reaching_storage():
            for page in pages:
                yield [
                    (stored_recipient(item), by_groups(item))
                    for item in page["Items"]
                    if "reach" in item  # or it isn't ours, and must not fail the rest
                ]


def _mark(selections: defaultdict[str, int], names: Iterable[str], bit: int) -> None:
    for name in names:
        selections[name] |= bit
