"""Presence: who is online, and when each was last seen."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chalicelib.principal import user_key
from chalicelib.storage import reaching_storage

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient


@dataclass(frozen=True, slots=True)
class Presence:
    """A user's presence. `last_seen` is in epoch milliseconds, None for one never connected."""

    user_id: str
    connections: int
    last_seen: int | None

    def to_dict(self) -> dict[str, object]:
        return {
            "userId": self.user_id,
            "status": "online" if self.connections else "offline",
            "lastSeen": self.last_seen,
            "connections": self.connections,
        }


class Users:
    """Reads the users table. The status follows from the set of connections: it can't be wrong."""

    def __init__(self, client: "DynamoDBClient", users_table: str) -> None:
        self._client = client
        self._table = users_table

    def presence(self, tenant: str | None, user_id: str) -> Presence:
        """The presence of a user of `tenant`. Raises Unavailable when storage is."""
        with reaching_storage():
            answer = self._client.get_item(
                TableName=self._table,
                Key={"user": {"S": user_key(tenant, user_id)}},
                ProjectionExpression="connections, lastSeen",
                ConsistentRead=True,
            )
        item = answer.get("Item", {})
        return Presence(
            user_id=user_id,
            connections=len(item["connections"]["SS"]) if "connections" in item else 0,
            last_seen=int(item["lastSeen"]["N"]) if "lastSeen" in item else None,
        )
