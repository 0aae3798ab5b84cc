"""A connection, its recipient and its states as values, and as items of three tables. No I/O.

`connections`, `users` and `groups` are written together:

- A user's item has the *set* of the ids of their connections. Adding to a set and deleting from it
  are idempotent, so a repeated or late event changes nothing; a counter would drift.
- `reach` says how to reach a connection. Its item, its user's item, its entry in the roster and
  each of its memberships have it, so that any message reads one table.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal, user_key
from chalicelib.clock import EpochMs, EpochSeconds, epoch_ms
from chalicelib.store.schema import (
    JOINED_PREFIX,
    MAX_CONNECTION_SECONDS,
    REACH_PREFIX,
    Item,
    connection_expires_at,
    connection_key,
    membership_key,
    roster_key,
)

HANDSHAKE_SECONDS = aws_limits.HANDSHAKE_SECONDS


class Status(StrEnum):
    """The states of a stored connection."""

    ACTIVE = "active"
    STALE = "stale"


LONG_AGO = EpochMs(0)


class Recipient(NamedTuple):
    """A connection as delivery needs it.

    Attributes:
        endpoint: The URL before `/@connections/…`.
        token_until: When its token is no longer accepted, in epoch seconds.
    """

    connection_id: str
    user_id: str
    tenant: str | None
    endpoint: str
    connected_at: EpochMs = LONG_AGO
    token_until: float = inf

    @property
    def user_key(self) -> str:
        """The user's key in the users table."""
        return user_key(self.tenant, self.user_id)

    def may_be_in_handshake(self, now: EpochMs) -> bool:
        """Return whether `$connect` may still be running; `@connections` answers 410 until then."""
        return now - self.connected_at < HANDSHAKE_SECONDS * 1000

    def is_outlived(self, now: EpochMs) -> bool:
        """Return whether API Gateway has certainly closed it."""
        return now - self.connected_at > MAX_CONNECTION_SECONDS * 1000

    def reach(self) -> Item:
        """Return how to reach it, as a typed value of the three tables.

        It is one string, since parsing attributes is most of the cost of reading an audience.
        """
        return {"S": f"{self.connected_at} {self.token_until} {self.endpoint}"}


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as it is stored."""

    connection_id: str
    principal: Principal
    endpoint: str
    _: KW_ONLY
    connected_at: EpochMs
    timestamp: EpochMs
    status: Status = Status.ACTIVE
    groups: frozenset[str] = frozenset()

    @property
    def expires_at(self) -> EpochSeconds:
        """DynamoDB's TTL."""
        return connection_expires_at(self.connected_at)

    @property
    def recipient(self) -> Recipient:
        """The connection as delivery needs it."""
        return Recipient(
            self.connection_id,
            self.principal.user_id,
            self.principal.tenant,
            self.endpoint,
            connected_at=self.connected_at,
            token_until=self.principal.accepted_until,
        )

    def status_at(self, now: EpochMs, stale_after_seconds: int) -> Status:
        """Return the status at `now`: stale after that long without activity, noted or not."""
        silent = now - self.timestamp > stale_after_seconds * 1000
        return Status.STALE if silent else self.status

    def is_unproven(self, now: EpochMs) -> bool:
        """Return whether its handshake is over, and nothing shows that it was accepted."""
        silent = self.timestamp == self.connected_at
        return silent and not self.recipient.may_be_in_handshake(now)

    def to_dict(self, now: EpochMs, stale_after_seconds: int) -> dict[str, object]:
        """Return the connection as REST shows it.

        `expiresAt` is the latest time at which it ends: by its age, or by its token's expiry
        unless the token is refreshed.
        """
        oldest = self.connected_at + MAX_CONNECTION_SECONDS * 1000
        return {
            "connectionId": self.connection_id,
            "status": self.status_at(now, stale_after_seconds),
            "connectedAt": self.connected_at,
            "timestamp": self.timestamp,
            "expiresAt": min(oldest, self.principal.expires_at * 1000),
        }

    def to_item(self) -> Item:
        """Return its item in the connections table."""
        item: Item = {
            **connection_key(self.connection_id),
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
        """Return the connection of an item. Raises KeyError for one that Herald did not write."""
        context = item["principal"]["M"]
        return cls(
            connection_id=item["connectionId"]["S"],
            principal=Principal.from_context({name: value["S"] for name, value in context.items()}),
            endpoint=item["endpoint"]["S"],
            connected_at=epoch_ms(item["connectedAt"]["N"]),
            timestamp=epoch_ms(item["timestamp"]["N"]),
            status=Status(item["status"]["S"]),
            groups=groups_of(item),
        )

    def membership(self, group: str) -> Item:
        """Return the item of the groups table that makes it a member of `group`."""
        return self._entry(membership_key(self.principal.tenant, group, self.connection_id))

    def roster_entry(self) -> Item:
        """Return the item of the groups table that makes it a part of its tenant's roster."""
        return self._entry(roster_key(self.principal.tenant, self.connection_id))

    def _entry(self, key: Item) -> Item:
        return {
            **key,
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
    """Return a principal as a typed value."""
    return {"M": {name: {"S": value} for name, value in principal.to_context().items()}}


def groups_of(item: Mapping[str, Any]) -> frozenset[str]:
    """Return the groups that a connection's item is in."""
    return frozenset(item["groups"]["SS"]) if "groups" in item else frozenset()


def joined_at(item: Mapping[str, Any]) -> dict[str, EpochMs]:
    """Return when a connection's item joined each of its groups.

    Groups that it joined as it opened have no attribute of their own.
    """
    opened = item["connectedAt"]
    return {
        group: epoch_ms(item.get(JOINED_PREFIX + group, opened)["N"]) for group in groups_of(item)
    }


def stored_recipient(item: Mapping[str, Any]) -> Recipient:
    """Return the recipient that an item of the connections or the groups table describes."""
    tenant = item["tenant"]["S"] if "tenant" in item else None
    return _parse_reach(item["reach"], item["connectionId"]["S"], item["userId"]["S"], tenant)


def connection_ids(user: Mapping[str, Any]) -> list[str]:
    """Return the ids of the connections in a user's item."""
    return list(user["connections"]["SS"]) if "connections" in user else []


def recipients_of(user: Mapping[str, Any], user_id: str, tenant: str | None) -> list[Recipient]:
    """Return the connections in a user's item, the oldest first."""
    recipients = [
        _parse_reach(user[REACH_PREFIX + connection_id], connection_id, user_id, tenant)
        for connection_id in connection_ids(user)
        if REACH_PREFIX + connection_id in user
    ]
    return sorted(recipients, key=lambda recipient: recipient.connected_at)


def _parse_reach(
    reach: Mapping[str, Any], connection_id: str, user_id: str, tenant: str | None
) -> Recipient:
    connected_at, token_until, endpoint = reach["S"].split(" ", 2)
    return Recipient(
        connection_id,
        user_id,
        tenant,
        endpoint,
        epoch_ms(connected_at),
        float(token_until),
    )
