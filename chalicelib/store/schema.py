"""The schema of Herald's five tables: every kind of item, its key, its attributes and its TTL.

Every key and every `expiresAt` is built here. `<tenant>` is percent-encoded, so that the first `/`
ends it, and empty for users without one. `docs/data-model.md` has an example of each item.

**connections**: key `connectionId`, index `userId`

- A connection. Attributes: `userId`, `tenant`, `principal`, `tokenUntil`, `endpoint`, `reach`,
  `connectedAt`, `timestamp`, `status`, `groups`, `+<group>`, `changes`, `refused`. Expires 2 h
  10 min after it opened.

**users**: key `user`

- A user, `<tenant>/<user id>`. Attributes: `connections`, `@<connection id>`, `lastSeen`,
  `connectDue`, `messageDue`, `readDue`, `resumeDue`, `quota`, `probedAt`, `closed0` to `closed2`.
  Expires 90 days after the last activity.
- A shard of the sweep, `sweep-<table>-<number>`. Attributes: `position`, `counted`, `active`,
  `leaseUntil`, `finishedAt`. Expires 90 days after its last sweep.

**groups**: key `group` and `connectionId`

- A membership: `group` is `<tenant>/<group>`. Attributes: `userId`, `tenant`, `reach`. Expires with
  its connection.
- An entry of a tenant's roster: `group` is `*/<tenant>/<shard>`; no group's key begins so. The
  attributes and the TTL are those of a membership.

**messages**: key `id`

- An `Idempotency-Key`, `key/<tenant>/<user id>/<SHA-256 of the key>`. Attributes: `digest`,
  `acceptedAt`, `seed`, `claimedUntil`, `answer`, `status`. Expires after 24 h.
- A queued message, `message/<message id>`. Attributes: `sender`, `request`, `parts`, `sealed`,
  `shards`, `paid`, `correlation`, a count for each result, `failed`, `failedBytes`; that of a
  request's first message also has `at<shard>`, `claim<shard>`, `by<shard>`, `until<shard>`. Expires
  after 24 h.
- The content of a queued request, `content/<request id>/<index>`. Attribute: `part`. Expires after
  24 h.
- The clock of a tenant in the fan-out, `pace/<region>/<hash of the tenant>`. Attributes: `due`,
  `period`. Expires a day after its last use.
- A counter of the tenants that are active in the fan-out, `pace/<region>/active/<slot>/<number>`.
  Attributes: `tenants`, `period`. Never expires.

**history**: key `stream` and `position`

- A message to a user, `user/<tenant>/<user id>`; to a group, `group/<tenant>/<group>`; or to
  everyone, `all/<tenant>/`. The position is the message's id. Attributes: `turn`, and `packed` or
  `sealed`. Expires 33 s after `HERALD_HISTORY_SECONDS`.
- A delayed message, `late/<tenant>/`. The position is the first ten characters of an id, which say
  when the delay was noted, and the message's id. Attributes: `kind`, `names`, `bytes`; it refers to
  a message above. TTL as above.
- A past membership, `was/<tenant>/<user id>`. The position is `ended/<connection id>` or
  `left/<time>/<connection id>`. Attributes: `at`, `groups`. Expires 1 s after
  `HERALD_HISTORY_SECONDS`.
"""

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from chalicelib import aws_limits
from chalicelib.auth.principal import group_key, user_key
from chalicelib.clock import EpochMs, EpochSeconds

Item = dict[str, Any]
"""An item, or a key, as DynamoDB's client has it: attribute names to typed values."""


class Tables(NamedTuple):
    """The names of the tables."""

    connections: str
    users: str
    groups: str
    messages: str
    history: str


KEY_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "connections": ("connectionId",),
    "users": ("user",),
    "groups": ("group", "connectionId"),
    "messages": ("id",),
    "history": ("stream", "position"),
}
"""The attributes of each table's key, by the fields of `Tables`. All of them are strings."""

# --- Times to live

DAY_SECONDS = 24 * 60 * 60
MAX_CONNECTION_SECONDS = aws_limits.CONNECTION_SECONDS
EXPIRY_GRACE_SECONDS = 10 * 60  # TTL is the last resort: disconnects and sweeps come first
USER_SECONDS = 90 * DAY_SECONDS
IDEMPOTENCY_SECONDS = DAY_SECONDS
QUEUED_SECONDS = DAY_SECONDS  # of a queued message, from its acceptance


def connection_expires_at(connected_at: EpochMs) -> EpochSeconds:
    """Return the TTL of a connection that opened at `connected_at`."""
    return _ttl(connected_at, MAX_CONNECTION_SECONDS + EXPIRY_GRACE_SECONDS)


def user_expires_at(now: EpochMs) -> EpochSeconds:
    """Return the TTL of a user, or of a sweep's shard, that is active at `now`."""
    return _ttl(now, USER_SECONDS)


def idempotency_expires_at(accepted_at: EpochMs) -> EpochSeconds:
    """Return the TTL of an `Idempotency-Key` that was used at `accepted_at`."""
    return _ttl(accepted_at, IDEMPOTENCY_SECONDS + 1)


def queued_expires_at(accepted_at: EpochMs) -> EpochSeconds:
    """Return the TTL of a queued message that was accepted at `accepted_at`."""
    return _ttl(accepted_at, QUEUED_SECONDS)


def fanout_expires_at(now: int) -> EpochSeconds:
    """Return the TTL of a clock that is used at `now`, in microseconds."""
    return EpochSeconds(now // 1_000_000 + DAY_SECONDS)


def history_expires_at(last_needed: EpochMs, history_seconds: int) -> EpochSeconds:
    """Return the TTL of an item that the history needs, `history_seconds` after `last_needed`."""
    return _ttl(last_needed, history_seconds + 1)


def _ttl(since: EpochMs, seconds: int) -> EpochSeconds:
    return EpochSeconds(since // 1000 + seconds)


# --- connections

JOINED_PREFIX = "+"
"""`+<group>` in a connection's item is when it joined the group, if that was after it opened."""


def connection_key(connection_id: str) -> Item:
    """Return the key of a connection."""
    return {"connectionId": {"S": connection_id}}


# --- users

REACH_PREFIX = "@"
"""`@<connection id>` in a user's item says how to reach the connection."""

CONNECT_RATE_ATTRIBUTE = "connectDue"
MESSAGE_RATE_ATTRIBUTE = "messageDue"
READ_RATE_ATTRIBUTE = "readDue"
RESUME_RATE_ATTRIBUTE = "resumeDue"
QUOTA_ATTRIBUTE = "quota"
CLOSED_SLOTS = ("closed0", "closed1", "closed2")
"""The ids of connections that ended during their handshake, by the minute in which they did."""


def user_item_key(user_key: str) -> Item:
    """Return the key of a user's item. `user_key` is `Principal.key`."""
    return {"user": {"S": user_key}}


def sweep_key(table: str, shard: int) -> Item:
    """Return the key of a sweep's shard. It has no `/`, unlike every user's."""
    return {"user": {"S": f"sweep-{table}-{shard}"}}


# --- groups


def membership_key(tenant: str | None, group: str, connection_id: str) -> Item:
    """Return the key of a connection's membership in a group."""
    return {"group": {"S": group_key(tenant, group)}, "connectionId": {"S": connection_id}}


ROSTER_SHARDS = 8
"""The parts of a tenant's roster. Each can take 1,000 writes a second."""


def roster_group(tenant: str | None, shard: int) -> str:
    """Return the `group` of the entries in one shard of a tenant's roster.

    No group has this key: `*` is not among the characters of a quoted tenant.
    """
    return f"*/{user_key(tenant, str(shard))}"


def roster_key(tenant: str | None, connection_id: str) -> Item:
    """Return the key of a connection's entry in its tenant's roster."""
    group = roster_group(tenant, roster_shard(connection_id))
    return {"group": {"S": group}, "connectionId": {"S": connection_id}}


def roster_shard(connection_id: str) -> int:
    """Return the shard of the roster that a connection is in."""
    return zlib.crc32(connection_id.encode()) % ROSTER_SHARDS


# --- messages


def idempotency_id(sender_key: str, key: str) -> str:
    """Return the id of a sender's `Idempotency-Key`. `sender_key` is `Principal.key`."""
    return f"key/{sender_key}/{hashlib.sha256(key.encode()).hexdigest()}"


def message_key(message_id: str) -> Item:
    """Return the key of a queued message's progress."""
    return {"id": {"S": f"message/{message_id}"}}


def content_id(request_id: str, index: int) -> str:
    """Return the id of one part of a queued request's content."""
    return f"content/{request_id}/{index}"


def fanout_clock_key(region: str, tenant_hash: str) -> Item:
    """Return the key of a tenant's clock in the fan-out of a region."""
    return {"id": {"S": f"pace/{region}/{tenant_hash}"}}


def fanout_counter_id(region: str, slot: int, counter: int) -> str:
    """Return the id of a counter of the fan-out's active tenants."""
    return f"pace/{region}/active/{slot}/{counter}"


def fanout_counter_key(region: str, slot: int, counter: int) -> Item:
    """Return the key of a counter of the fan-out's active tenants."""
    return {"id": {"S": fanout_counter_id(region, slot, counter)}}


# --- history


def user_stream(tenant: str | None, user_id: str) -> str:
    """Return the stream of messages to a user."""
    return f"user/{user_key(tenant, user_id)}"


def group_stream(tenant: str | None, group: str) -> str:
    """Return the stream of messages to a group."""
    return f"group/{group_key(tenant, group)}"


def everyone_stream(tenant: str | None) -> str:
    """Return the stream of messages to everyone of a tenant."""
    return f"all/{user_key(tenant, '')}"


def delayed_stream(tenant: str | None) -> str:
    """Return the stream of a tenant's delayed messages."""
    return f"late/{user_key(tenant, '')}"


def past_memberships_stream(user_key: str) -> str:
    """Return the stream of a user's past memberships. `user_key` is `Principal.key`."""
    return f"was/{user_key}"


def ended_position(connection_id: str) -> str:
    """Return the position of the groups in which a connection was when it ended."""
    return f"ended/{connection_id}"


def left_position(now: EpochMs, connection_id: str) -> str:
    """Return the position of the groups that a connection left at `now`."""
    return f"left/{now}/{connection_id}"
