"""The connections, each tied to its user: opening, closing, and what is known of one.

Two tables, written together. `connections` holds an item for each connection, key `connectionId`,
index `userId`. `users` holds an item for each user, with the *set* of their connections' ids:
adding to and deleting from a set is idempotent, so an event that comes twice or late changes
nothing, where a counter would drift. Beside the set, one attribute for each connection says how to
reach it, so that a message to a user needs the user's item alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from chalicelib.errors import TooManyConnections
from chalicelib.principal import Principal, user_key
from chalicelib.storage import (
    Item,
    cancellation_codes,
    error_code,
    reaching_storage,
    retrying_conflicts,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

MAX_CONNECTION_SECONDS = 2 * 60 * 60  # API Gateway closes every connection then
EXPIRY_GRACE_SECONDS = 10 * 60  # TTL is the last resort: it comes after everything else
REACH_PREFIX = "@"


class Status(StrEnum):
    """The states of a connection that has an item."""

    ACTIVE = "active"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Recipient:
    """A connection as delivery needs it. `endpoint` is the URL before `/@connections/…`."""

    connection_id: str
    user_id: str
    tenant: str | None
    endpoint: str


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection that opens. `connected_at` is in epoch milliseconds."""

    connection_id: str
    principal: Principal
    endpoint: str
    connected_at: int

    def to_item(self) -> Item:
        """The item as it is stored; what tells one user's connection from another's included."""
        context = self.principal.to_context()
        expires_at = self.connected_at // 1000 + MAX_CONNECTION_SECONDS + EXPIRY_GRACE_SECONDS
        item: Item = {
            "connectionId": {"S": self.connection_id},
            "userId": {"S": self.principal.user_id},
            "status": {"S": Status.ACTIVE},
            "timestamp": {"N": str(self.connected_at)},
            "connectedAt": {"N": str(self.connected_at)},
            "expiresAt": {"N": str(expires_at)},
            "endpoint": {"S": self.endpoint},
            "principal": {"M": {name: {"S": value} for name, value in context.items()}},
        }
        if self.principal.tenant is not None:
            item["tenant"] = {"S": self.principal.tenant}
        return item


class Connections:
    """Every write to the two tables. Each method raises Unavailable when storage is."""

    def __init__(
        self, client: "DynamoDBClient", connections_table: str, users_table: str, limit: int
    ) -> None:
        self._client = client
        self._connections_table = connections_table
        self._users_table = users_table
        self._limit = limit

    def open(self, connection: Connection) -> None:
        """Store a connection and tie it to its user, both or neither, in one call.

        Opening the same connection again changes nothing. Raises TooManyConnections when the user
        has as many as the limit allows; that holds however many connect at once.
        """
        connection_id = connection.connection_id
        put: Any = {
            "Put": {"TableName": self._connections_table, "Item": connection.to_item()},
        }
        add: Any = {
            "Update": {
                "TableName": self._users_table,
                "Key": {"user": {"S": connection.principal.key}},
                "UpdateExpression": "ADD #connections :ids SET #reach = :reach, lastSeen = :now",
                "ConditionExpression": "attribute_not_exists(#connections)"
                " OR size(#connections) < :limit OR contains(#connections, :id)",
                "ExpressionAttributeNames": {
                    "#connections": "connections",
                    "#reach": REACH_PREFIX + connection_id,
                },
                "ExpressionAttributeValues": {
                    ":ids": {"SS": [connection_id]},
                    ":id": {"S": connection_id},
                    ":reach": {"M": {"endpoint": {"S": connection.endpoint}}},
                    ":limit": {"N": str(self._limit)},
                    ":now": {"N": str(connection.connected_at)},
                },
            }
        }
        with reaching_storage():
            try:
                retrying_conflicts(
                    lambda: self._client.transact_write_items(TransactItems=[put, add])
                )
            except ClientError as error:
                if "ConditionalCheckFailed" not in cancellation_codes(error):
                    raise
                raise TooManyConnections(
                    f"the user has {self._limit} connections, which is the limit"
                ) from None

    def close(self, connection_id: str, tenant: str | None, user_id: str, now: int) -> None:
        """Remove a connection and untie it from its user, both or neither, in one call.

        Closing one that is closed already only moves `lastSeen`. `now` is in epoch milliseconds.
        """
        delete: Any = {
            "Delete": {
                "TableName": self._connections_table,
                "Key": {"connectionId": {"S": connection_id}},
            }
        }
        untie: Any = {
            "Update": {
                "TableName": self._users_table,
                "Key": {"user": {"S": user_key(tenant, user_id)}},
                "UpdateExpression": "DELETE #connections :ids REMOVE #reach SET lastSeen = :now",
                "ExpressionAttributeNames": {
                    "#connections": "connections",
                    "#reach": REACH_PREFIX + connection_id,
                },
                "ExpressionAttributeValues": {
                    ":ids": {"SS": [connection_id]},
                    ":now": {"N": str(now)},
                },
            }
        }
        with reaching_storage():
            retrying_conflicts(
                lambda: self._client.transact_write_items(TransactItems=[delete, untie])
            )

    def principal(self, connection_id: str) -> Principal | None:
        """Whose connection it is, for events without an authorizer's context; None if unknown."""
        with reaching_storage():
            answer = self._client.get_item(
                TableName=self._connections_table,
                Key={"connectionId": {"S": connection_id}},
                ProjectionExpression="principal",
                ConsistentRead=True,
            )
        if "Item" not in answer:
            return None
        context: Mapping[str, Any] = answer["Item"]["principal"]["M"]
        return Principal.from_context({name: value["S"] for name, value in context.items()})

    def touch(self, connection_id: str, now: int) -> None:
        """Note that the client was heard at `now` (epoch milliseconds): it is active."""
        self._set(connection_id, "#status = :status, #timestamp = :now", Status.ACTIVE, now)

    def mark_stale(self, connection_id: str) -> None:
        """Note that the connection didn't take a delivery, and may be dead."""
        self._set(connection_id, "#status = :status", Status.STALE)

    def check(self) -> None:
        """Raise Unavailable unless both tables can be read."""
        absent: Any = {"S": "-"}
        with reaching_storage():
            self._client.batch_get_item(
                RequestItems={
                    self._connections_table: {"Keys": [{"connectionId": absent}]},
                    self._users_table: {"Keys": [{"user": absent}]},
                }
            )

    def _set(
        self, connection_id: str, assignments: str, status: Status, now: int | None = None
    ) -> None:
        names = {"#status": "status"}
        values: Item = {":status": {"S": status}}
        if now is not None:
            names["#timestamp"] = "timestamp"
            values[":now"] = {"N": str(now)}
        with reaching_storage():
            try:
                retrying_conflicts(
                    lambda: self._client.update_item(
                        TableName=self._connections_table,
                        Key={"connectionId": {"S": connection_id}},
                        UpdateExpression=f"SET {assignments}",
                        # An update of nothing would make a ghost.
                        ConditionExpression="attribute_exists(connectionId)",
                        ExpressionAttributeNames=names,
                        ExpressionAttributeValues=values,
                    )
                )
            except ClientError as error:
                if error_code(error) != "ConditionalCheckFailedException":
                    raise
