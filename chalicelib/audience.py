"""Whom a message is for: an audience in, a stream of recipients out, page by page."""

import random
import time
from collections.abc import Iterator, Sequence
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


class Audiences:
    """Finds an audience's connections, within one tenant and nowhere else."""

    def __init__(self, client: "DynamoDBClient", connections_table: str, users_table: str) -> None:
        self._client = client
        self._connections_table = connections_table
        self._users_table = users_table

    def recipients(self, audience: Audience, tenant: str | None) -> Iterator[Recipient]:
        """Each live connection that `audience` names in `tenant`, once, less its exceptions.

        Reads as it is consumed. Raises Unavailable when storage is, at any page.
        """
        match audience.kind:
            case AudienceKind.USERS:
                found = self._of_users(audience.names, tenant)
            case AudienceKind.CONNECTIONS:
                found = self._by_id(audience.names)
            case AudienceKind.ALL:
                found = self._everyone(tenant)
            case AudienceKind.GROUPS:
                raise NotImplementedError("the parser refuses groups")
        for recipient in found:
            # A connection of another tenant is no recipient, whatever found it.
            if (
                recipient.tenant == tenant
                and recipient.user_id not in audience.except_users
                and recipient.connection_id not in audience.except_connections
            ):
                yield recipient

    def _of_users(self, user_ids: Sequence[str], tenant: str | None) -> Iterator[Recipient]:
        by_key = {user_key(tenant, user_id): user_id for user_id in user_ids}
        for item in self._batch_get(self._users_table, "user", list(by_key)):
            user_id = by_key[item["user"]["S"]]
            for connection_id in item.get("connections", {"SS": []})["SS"]:
                reach = item[REACH_PREFIX + connection_id]["M"]
                yield Recipient(connection_id, user_id, tenant, reach["endpoint"]["S"])

    def _by_id(self, connection_ids: Sequence[str]) -> Iterator[Recipient]:
        for item in self._batch_get(self._connections_table, "connectionId", connection_ids):
            yield _recipient(item)

    def _everyone(self, tenant: str | None) -> Iterator[Recipient]:
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
            **condition,
        )
        with reaching_storage():
            for page in pages:
                yield from map(_recipient, page["Items"])

    def _batch_get(self, table: str, key: str, values: Sequence[str]) -> Iterator[Item]:
        for start in range(0, len(values), MAX_BATCH_GET):
            keys: list[Any] = [
                {key: {"S": value}} for value in values[start : start + MAX_BATCH_GET]
            ]
            yield from self._batch_get_one(table, keys)

    def _batch_get_one(self, table: str, keys: list[Any]) -> Iterator[Item]:
        """BatchGetItem may leave keys unread, in a throttled moment or above 16 MB: ask again."""
        for attempt in range(BATCH_TRIES):
            with reaching_storage():
                answer = self._client.batch_get_item(
                    RequestItems={table: {"Keys": keys, "ConsistentRead": True}}
                )
            yield from answer["Responses"].get(table, [])
            if table not in answer["UnprocessedKeys"]:
                return
            keys = list(answer["UnprocessedKeys"][table]["Keys"])
            time.sleep(random.uniform(0, BATCH_BACKOFF_SECONDS * 2**attempt))
        raise Unavailable("storage is too busy", retry_after=RETRY_AFTER_SECONDS)


def _recipient(item: Item) -> Recipient:
    return Recipient(
        connection_id=item["connectionId"]["S"],
        user_id=item["userId"]["S"],
        tenant=item["tenant"]["S"] if "tenant" in item else None,
        endpoint=item["endpoint"]["S"],
    )
