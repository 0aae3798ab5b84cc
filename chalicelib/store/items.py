"""A connection, its recipient and its states as values, and as the items of the tables.

No I/O here. Three tables, written together:

- `connections`: an item for each connection, key `connectionId`, index `userId`.
- `users`: an item for each user, with the *set* of their connections' ids: adding to and deleting
  from a set is idempotent, so an event that comes twice or late changes nothing, where a counter
  would drift. Beside the set, an attribute `@<connectionId>` says how to reach each connection, so
  that a message to a user needs the user's item alone.
- `groups`: an item for each group and connection in it, which says the same of the connection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal, group_key, user_key

MAX_CONNECTION_SECONDS = aws_limits.CONNECTION_SECONDS
EXPIRY_GRACE_SECONDS = 10 * 60  # TTL is the last resort: it comes after everything else
USER_SECONDS = 90 * 24 * 60 * 60  # how long it is known when somebody was last seen
HANDSHAKE_SECONDS = aws_limits.HANDSHAKE_SECONDS
REACH_PREFIX = "@"
JOINED_PREFIX = "+"

Item = dict[str, Any]
"""A DynamoDB item as its client has it: attribute names to typed values."""


class Status(StrEnum):
    """The states of a connection that has an item."""

    ACTIVE = "active"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Tables:
    """The names of the tables."""

    connections: str
    users: str
    groups: str
    messages: str
    history: str


@dataclass(frozen=True, slots=True)
class Recipient:
    """A connection as delivery needs it.

    `endpoint` is the URL before `/@connections/…`, `connected_at` in epoch milliseconds.
    `token_until` is when its token is no longer accepted, in epoch seconds.
    """

    connection_id: str
    user_id: str
    tenant: str | None
    endpoint: str
    connected_at: int = 0
    token_until: float = inf

    @property
    def user_key(self) -> str:
        """The user's key in the users table."""
        return user_key(self.tenant, self.user_id)

    def may_be_in_handshake(self, now: int) -> bool:
        """Whether its `$connect` may be unfinished: until then `@connections` says 410."""
        return now - self.connected_at < HANDSHAKE_SECONDS * 1000

    def is_outlived(self, now: int) -> bool:
        """Whether API Gateway has closed it for certain."""
        return now - self.connected_at > MAX_CONNECTION_SECONDS * 1000

    def reach(self) -> Item:
        """How to reach it, as each table has it. One string: parsing attributes is most of what
        reading an audience costs."""
        return {"S": f"{self.connected_at} {self.token_until} {self.endpoint}"}


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as it is stored. Times are in epoch milliseconds."""

    connection_id: str
    principal: Principal
    endpoint: str
    connected_at: int
    timestamp: int
    status: Status = Status.ACTIVE
    groups: frozenset[str] = frozenset()

    @property
    def expires_at(self) -> int:
        """DynamoDB's TTL, in epoch seconds."""
        return self.connected_at // 1000 + MAX_CONNECTION_SECONDS + EXPIRY_GRACE_SECONDS

    @property
    def recipient(self) -> Recipient:
        return Recipient(
            self.connection_id,
            self.principal.user_id,
            self.principal.tenant,
            self.endpoint,
            self.connected_at,
            self.principal.accepted_until,
        )

    def status_at(self, now: int, stale_after_seconds: int) -> Status:
        """The status at `now`: who was silent for long is stale, whether it was noted or not."""
        silent = now - self.timestamp > stale_after_seconds * 1000
        return Status.STALE if silent else self.status

    def to_dict(self, now: int, stale_after_seconds: int) -> dict[str, object]:
        """The connection as REST shows it. It ends at `expiresAt` at the latest, by its age or by
        its token's, unless that is refreshed."""
        age = self.connected_at + MAX_CONNECTION_SECONDS * 1000
        return {
            "connectionId": self.connection_id,
            "status": self.status_at(now, stale_after_seconds),
            "connectedAt": self.connected_at,
            "timestamp": self.timestamp,
            "expiresAt": min(age, self.principal.expires_at * 1000),
        }

    def to_item(self) -> Item:
        """The item as it is stored."""
        item: Item = {
            "connectionId": {"S": self.connection_id},
            **self._owner(),
            "reach": self.recipient.reach(),
            "endpoint": {"S": self.endpoint},
            "connectedAt": {"N": str(self.connected_at)},
            "tokenUntil": {"N": str(self.principal.accepted_until)},
            "status": {"S": self.status},
            "timestamp": {"N": str(self.timestamp)},
            "expiresAt": {"N": str(self.expires_at)},
            "principal": principal_value(self.principal),
        }
        if self.groups:
            item["groups"] = {"SS": sorted(self.groups)}
        return item

    @classmethod
    def from_item(cls, item: Mapping[str, Any]) -> "Connection":
        """The inverse of `to_item`. Raises KeyError for what isn't Herald's."""
        context = item["principal"]["M"]
        return cls(
            connection_id=item["connectionId"]["S"],
            principal=Principal.from_context({name: value["S"] for name, value in context.items()}),
            endpoint=item["endpoint"]["S"],
            connected_at=int(item["connectedAt"]["N"]),
            timestamp=int(item["timestamp"]["N"]),
            status=Status(item["status"]["S"]),
            groups=groups_of(item),
        )

    def membership(self, group: str) -> Item:
        """The item of the groups table that makes it a member."""
        return {
            "group": {"S": group_key(self.principal.tenant, group)},
            "connectionId": {"S": self.connection_id},
            **self._owner(),
            "reach": self.recipient.reach(),
            "expiresAt": {"N": str(self.expires_at)},
        }

    def _owner(self) -> Item:
        owner: Item = {"userId": {"S": self.principal.user_id}}
        if self.principal.tenant is not None:
            owner["tenant"] = {"S": self.principal.tenant}
        return owner


def principal_value(principal: Principal) -> Item:
    """A principal as an attribute's value."""
    return {"M": {name: {"S": value} for name, value in principal.to_context().items()}}


def groups_of(item: Mapping[str, Any]) -> frozenset[str]:
    """The groups that a connection's item is in."""
    return frozenset(item["groups"]["SS"]) if "groups" in item else frozenset()


def joined_at(item: Mapping[str, Any]) -> dict[str, int]:
    """Since when a connection's item is in each of its groups, in epoch milliseconds. Only for a
    group that was joined later is it written: in an attribute of its own, `+<group>`."""
    opened = item["connectedAt"]
    return {group: int(item.get(JOINED_PREFIX + group, opened)["N"]) for group in groups_of(item)}


def stored_recipient(item: Mapping[str, Any]) -> Recipient:
    """Whom an item of the connections table or of the groups table reaches."""
    tenant = item["tenant"]["S"] if "tenant" in item else None
    return _reached(item["reach"], item["connectionId"]["S"], item["userId"]["S"], tenant)


def connection_ids(user: Mapping[str, Any]) -> list[str]:
    """The ids in the set of a user's item."""
    return list(user["connections"]["SS"]) if "connections" in user else []


def recipients_of(user: Mapping[str, Any], user_id: str, tenant: str | None) -> list[Recipient]:
    """The connections that a user's item has, the oldest first."""
    recipients = [
        _reached(user[REACH_PREFIX + connection_id], connection_id, user_id, tenant)
        for connection_id in connection_ids(user)
        if REACH_PREFIX + connection_id in user
    ]
    return sorted(recipients, key=lambda recipient: recipient.connected_at)


def _reached(
    reach: Mapping[str, Any], connection_id: str, user_id: str, tenant: str | None
) -> Recipient:
    connected_at, token_until, endpoint = reach["S"].split(" ", 2)
    return Recipient(
        connection_id, user_id, tenant, endpoint, int(connected_at), float(token_until)
    )
