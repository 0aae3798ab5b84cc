"""Whom messages are for: audiences in, a stream of recipients out, page by page."""

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from chalicelib.connections import REACH_PREFIX, Recipient
from chalicelib.errors import Unavailable
from chalicelib.messages import Audience, AudienceKind
from chalicelib.principal import user_key
from chalicelib.storage import MAX_BATCH_GET, RETRY_AFTER_SECONDS, Item, reaching_storage

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

BATCH_TRIES = 5
BATCH_BACKOFF_SECONDS = 0.05
SCAN_ITEMS = 1000  # to a page: what one holds in memory, not what a read costs

Page = list[tuple[Recipient, int]]
"""Recipients, each with the selection of the messages that are for it: bit n is the n-th's."""


class Selector:
    """Which of a request's messages are for a connection."""

    def __init__(self, audiences: Sequence[Audience]) -> None:
        self.for_all = 0
        self.for_users: defaultdict[str, int] = defaultdict(int)
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
                    raise NotImplementedError("the parser refuses groups")
            _mark(self._not_users, audience.except_users, bit)
            _mark(self._not_connections, audience.except_connections, bit)

    def select(self, recipient: Recipient) -> int:
        """The messages for `recipient`: bit n is set for the n-th."""
        user_id, connection_id = recipient.user_id, recipient.connection_id
        wanted = (
            self.for_all
            | self.for_users.get(user_id, 0)
            | self.for_connections.get(connection_id, 0)
        )
        unwanted = self._not_users.get(user_id, 0) | self._not_connections.get(connection_id, 0)
        return wanted & ~unwanted


class Audiences:
    """Finds the connections of audiences, within one tenant and nowhere else."""

    def __init__(self, client: "DynamoDBClient", connections_table: str, users_table: str) -> None:
        self._client = client
        self._connections_table = connections_table
        self._users_table = users_table

    def pages(self, audiences: Sequence[Audience], tenant: str | None) -> Iterator[Page]:
        """Each live connection of `tenant` that an audience names, once, less its exceptions.

        Reads as it is consumed. Raises Unavailable when storage is, at any page.
        """
        selector = Selector(audiences)
        for found in self._everyone(tenant) if selector.for_all else self._named(selector, tenant):
            # A connection of another tenant is no recipient, whatever found it.
            ours = (recipient for recipient in found if recipient.tenant == tenant)
            page = [(recipient, selector.select(recipient)) for recipient in ours]
            yield [(recipient, selection) for recipient, selection in page if selection]

    def of_users(self, user_ids: Sequence[str], tenant: str | None) -> Iterator[list[Recipient]]:
        """The connections of users, as their own items have them."""
        by_key = {user_key(tenant, user_id): user_id for user_id in user_ids}
        for items in self._batch_get(self._users_table, "user", list(by_key)):
            yield [
                Recipient(
                    connection_id,
                    by_key[item["user"]["S"]],
                    tenant,
                    item[REACH_PREFIX + connection_id]["M"]["endpoint"]["S"],
                )
                for item in items
                for connection_id in item.get("connections", {"SS": []})["SS"]
            ]

    def _named(self, selector: Selector, tenant: str | None) -> Iterator[list[Recipient]]:
        not_found = dict.fromkeys(selector.for_connections)
        for recipients in self.of_users(list(selector.for_users), tenant):
            for recipient in recipients:
                not_found.pop(recipient.connection_id, None)
            yield recipients
        for items in self._batch_get(self._connections_table, "connectionId", list(not_found)):
            yield [_recipient(item) for item in items]

    def _everyone(self, tenant: str | None) -> Iterator[list[Recipient]]:
        condition: dict[str, Any] = {"FilterExpression": "attribute_not_exists(tenant)"}
        if tenant is not None:
            condition = {
                "FilterExpression": "tenant = :tenant",
                "ExpressionAttributeValues": {":tenant": {"S": tenant}},
            }
        pages = self._client.get_paginator("scan").paginate(
            TableName=self._connections_table,
            ProjectionExpression="connectionId, userId, tenant, endpoint",
            ConsistentRead=True,  # who connected just before the message is part of the audience
            PaginationConfig={"PageSize": SCAN_ITEMS},
            **condition,
        )
        with reaching_storage():
            for page in pages:
                yield [_recipient(item) for item in page["Items"]]

    def _batch_get(self, table: str, key: str, values: Sequence[str]) -> Iterator[list[Item]]:
        for start in range(0, len(values), MAX_BATCH_GET):
            keys: list[Any] = [
                {key: {"S": value}} for value in values[start : start + MAX_BATCH_GET]
            ]
            yield from self._batch_get_one(table, keys)

    def _batch_get_one(self, table: str, keys: list[Any]) -> Iterator[list[Item]]:
        """BatchGetItem may leave keys unread, in a throttled moment or above 16 MB: ask again."""
        for attempt in range(BATCH_TRIES):
            with reaching_storage():
                answer = self._client.batch_get_item(
                    RequestItems={table: {"Keys": keys, "ConsistentRead": True}}
                )
            yield answer["Responses"].get(table, [])
            if table not in answer["UnprocessedKeys"]:
                return
            keys = list(answer["UnprocessedKeys"][table]["Keys"])
            time.sleep(random.uniform(0, BATCH_BACKOFF_SECONDS * 2**attempt))
        raise Unavailable("storage is too busy", retry_after=RETRY_AFTER_SECONDS)


def _mark(selections: defaultdict[str, int], names: Iterable[str], bit: int) -> None:
    for name in names:
        selections[name] |= bit


def _recipient(item: Item) -> Recipient:
    return Recipient(
        connection_id=item["connectionId"]["S"],
        user_id=item["userId"]["S"],
        tenant=item["tenant"]["S"] if "tenant" in item else None,
        endpoint=item["endpoint"]["S"],
    )
