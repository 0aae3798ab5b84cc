"""The progress of the sweep: which shard is due, who sweeps it, and how far it has come.

Each shard has an item in the users table. Its key has no `/`, which every user's key has.
"""

from enum import StrEnum
from typing import NamedTuple

from chalicelib.clock import Clock, EpochMs, epoch_ms
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.items import LONG_AGO
from chalicelib.store.schema import Item, sweep_key, user_expires_at

SHARDS = 4  # of each table
LEASE_MS = 60_000  # after this long without progress another sweep may take a shard over
USERS_INTERVAL_MS = 55 * 60 * 1000
"""So users are swept each hour. That is rare, since whatever uses a user's item repairs it too."""


class SweptTable(StrEnum):
    """The tables that are swept; the values are part of the keys of their shards."""

    CONNECTIONS = "connections"
    USERS = "users"


class SweepShard(NamedTuple):
    """One of the SHARDS segments of a table. It is due `interval_ms` after it was last swept."""

    table: SweptTable
    number: int
    interval_ms: int = 0

    @property
    def key(self) -> Item:
        """The key of its item in the users table."""
        return sweep_key(self.table, self.number)


CONNECTIONS = [SweepShard(SweptTable.CONNECTIONS, number) for number in range(SHARDS)]
USERS = [SweepShard(SweptTable.USERS, number, USERS_INTERVAL_MS) for number in range(SHARDS)]


class ShardProgress(NamedTuple):
    """How far a shard has been swept.

    Attributes:
        position: The key of the last item read; None before the first.
        active: The number of active connections up to there.
        began_at: When this sweep of the shard began, in whichever invocation.
        last_began_at: When the last complete one began.
    """

    position: Item | None = None
    active: int = 0
    began_at: EpochMs = LONG_AGO
    last_began_at: EpochMs = LONG_AGO


class SweepProgress:
    """Stores the progress of each shard. Each method raises Unavailable when storage is."""

    def __init__(self, store: Store, *, now: Clock) -> None:
        self._store = store
        self._now = now

    def claim(self, shard: SweepShard) -> ShardProgress | None:
        """Lease a shard; return its progress, or None if it is not due or someone else has it."""
        now = self._now()
        claim = Clause(
            set=(
                "leaseUntil = :until",
                "expiresAt = :expires",
                "beganAt = if_not_exists(beganAt, :now)",
            ),
            when=(
                "attribute_not_exists(leaseUntil) OR leaseUntil < :now",
                "attribute_not_exists(finishedAt) OR finishedAt <= :due"
                " OR attribute_exists(#position)",
            ),
            names={"#position": "position"},
            values={
                ":until": number(now + LEASE_MS),
                ":now": number(now),
                ":due": number(now - shard.interval_ms),
                ":expires": number(user_expires_at(now)),
            },
        )
        action = update(self._store.tables.users, shard.key, claim)
        try:
            item = self._store.update(action, ReturnValues="ALL_NEW")
        except Cancelled:
            return None
        progress = ShardProgress(
            began_at=epoch_ms(item["beganAt"]["N"]),
            last_began_at=epoch_ms(item["lastBeganAt"]["N"]) if "lastBeganAt" in item else LONG_AGO,
        )
        if "position" not in item:
            return progress
        return progress._replace(position=item["position"]["M"], active=int(item["counted"]["N"]))

    def save(self, shard: SweepShard, progress: ShardProgress, *, release: bool) -> None:
        """Save how far a leased shard has come, and extend the lease or release it."""
        saved = Clause(
            set=("#position = :position", "counted = :counted", "leaseUntil = :until"),
            names={"#position": "position"},
            values={
                ":position": {"M": progress.position},
                ":counted": number(progress.active),
                ":until": number(0 if release else self._now() + LEASE_MS),
            },
        )
        self._store.update(update(self._store.tables.users, shard.key, saved))

    def finish(self, shard: SweepShard, progress: ShardProgress) -> None:
        """Mark a leased shard as swept, with its number of active connections; release it."""
        finished = Clause(
            set=("active = :active", "finishedAt = :now", "lastBeganAt = :began"),
            remove=("#position", "counted", "leaseUntil", "beganAt"),
            names={"#position": "position"},
            values={
                ":active": number(progress.active),
                ":now": number(self._now()),
                ":began": number(progress.began_at),
            },
        )
        self._store.update(update(self._store.tables.users, shard.key, finished))

    def active_connections(self) -> int | None:
        """Return the number of active connections when their table was last swept.

        Returns None before it was swept as a whole for the first time.
        """
        keys = [str(shard.key["user"]["S"]) for shard in CONNECTIONS]
        pages = self._store.batch_get(self._store.tables.users, "user", keys)
        counts = [int(item["active"]["N"]) for page in pages for item in page if "active" in item]
        return sum(counts) if len(counts) == SHARDS else None
