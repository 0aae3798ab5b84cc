"""The sweep: finds by looking what no event has told.

A connection whose `$disconnect` was lost, one that has said nothing for long, one whose token has
expired, an id in a user's set whose connection DynamoDB's TTL has taken. Every table is looked
through in shards, segments of a parallel scan, page by page. How far each shard has come is kept,
so a sweep that is short of time, or dies, is continued by the next one; two at once share the work.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chalicelib.auth.principal import split_user_key
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.protocol.reports import Result
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Cancelled, ItemPage, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.items import Connection, Recipient, Status, connection_ids
from chalicelib.store.schema import Item, sweep_key, user_expires_at

SHARDS = 4  # of each table
PAGE_ITEMS = 1000
PAGE_SECONDS = 8.0  # the most that a page may take: no other is begun with less time left
LEASE_MS = 60_000
USERS_EVERY_MS = 60 * 60 * 1000  # seldom: whoever uses a user's item mends it too

logger = logging.getLogger("herald.sweep")


@dataclass(frozen=True, slots=True)
class Shard:
    """A segment of a table, which is swept every so often. Its progress is in the users table: a
    user's key has a `/`, this one has not."""

    kind: str
    number: int
    every_ms: int

    @property
    def key(self) -> Item:
        return sweep_key(self.kind, self.number)


CONNECTIONS = [Shard("connections", number, 0) for number in range(SHARDS)]
USERS = [Shard("users", number, USERS_EVERY_MS) for number in range(SHARDS)]


class Sweeper:
    """Looks through the tables."""

    def __init__(
        self,
        store: Store,
        *,
        connections: Connections,
        outcome_recorder: OutcomeRecorder,
        disconnector: Disconnector,
        stale_after_seconds: int,
        now: Callable[[], int],
        report: Callable[[int], None],
    ) -> None:
        """`now` is the clock, in epoch milliseconds; `report` is told the number of active
        connections."""
        self._store = store
        self._tables = store.tables
        self._connections = connections
        self._outcome_recorder = outcome_recorder
        self._disconnector = disconnector
        self._stale_after_seconds = stale_after_seconds
        self._now = now
        self._report = report

    def sweep(self, deadline: float) -> None:
        """Sweep what is due, as far as the time goes; `deadline` is in `time.monotonic` seconds.

        Raises Unavailable when storage is.
        """
        for shard in random.sample(CONNECTIONS, SHARDS) + random.sample(USERS, SHARDS):
            if _is_short(deadline):
                break
            progress = self._claim(shard)
            if progress is not None:
                self._sweep(shard, progress, deadline)
        self._report_active()

    def _sweep(self, shard: Shard, progress: Mapping[str, Any], deadline: float) -> None:
        """Sweep a shard from where it was left."""
        position: Item | None = progress["position"]["M"] if "position" in progress else None
        active = int(progress["counted"]["N"]) if "counted" in progress else 0
        while True:
            items, position = self._read(shard, position)
            page_deadline = min(deadline, time.monotonic() + PAGE_SECONDS)
            if shard.kind == "users":
                self._sweep_users(items)
            else:
                active += self._sweep_connections(items, page_deadline)
            if position is None:
                self._finish(shard, active)
                return
            short = _is_short(deadline)
            self._save(shard, position, active, 0 if short else LEASE_MS)
            if short:
                return

    def _sweep_connections(self, items: Sequence[Item], deadline: float) -> int:
        """End and probe what needs it; how many are active."""
        now = self._now()
        expired: list[Recipient] = []
        doubtful: list[Recipient] = []
        active = 0
        for item in items:
            try:
                connection = Connection.from_item(item)
            except (KeyError, ValueError):
                logger.error("not a connection of Herald's: %s", item["connectionId"]["S"])
                continue
            recipient = connection.recipient
            if recipient.token_until <= now / 1000:
                expired.append(recipient)
            elif recipient.is_outlived(now) or (
                connection.status_at(now, self._stale_after_seconds) is Status.STALE
            ):
                doubtful.append(recipient)
            else:
                active += 1
        self._disconnector.disconnect_expired(expired, deadline)
        outcomes = self._outcome_recorder.probe(doubtful, deadline) if doubtful else []
        return active + sum(outcome.result is Result.DELIVERED for outcome in outcomes)

    def _sweep_users(self, items: Sequence[Item]) -> None:
        """Untie users from connections that are no more."""
        ties = {
            connection_id: split_user_key(item["user"]["S"])
            for item in items
            for connection_id in connection_ids(item)
        }
        table = self._tables.connections
        for page in self._store.batch_get(table, "connectionId", list(ties)):
            for item in page:
                del ties[item["connectionId"]["S"]]
        for connection_id, (tenant, user_id) in ties.items():
            logger.info("untied", extra={"connectionId": connection_id, "userId": user_id})
            self._connections.untie(Recipient(connection_id, user_id, tenant, ""), self._now())

    def _read(self, shard: Shard, position: Item | None) -> ItemPage:
        """The next page of a shard, and the position after it."""
        start: Any = {} if position is None else {"ExclusiveStartKey": position}
        only: Any = {}
        if shard.kind == "users":
            only = {
                "FilterExpression": "attribute_exists(#connections)",
                "ProjectionExpression": "#user, #connections",
                "ExpressionAttributeNames": {"#user": "user", "#connections": "connections"},
            }
        return next(
            self._store.scan(
                getattr(self._tables, shard.kind),
                Segment=shard.number,
                TotalSegments=SHARDS,
                Limit=PAGE_ITEMS,
                **start,
                **only,
            )
        )

    # --- Progress

    def _claim(self, shard: Shard) -> Item | None:
        """A shard's progress, if it is due and nobody else is at it."""
        now = self._now()
        claim = Clause(
            set=("leaseUntil = :until", "expiresAt = :expires"),
            when=(
                "attribute_not_exists(leaseUntil) OR leaseUntil < :now",
                "attribute_not_exists(finishedAt) OR finishedAt <= :due"
                " OR attribute_exists(#position)",
            ),
            names={"#position": "position"},
            values={
                ":until": number(now + LEASE_MS),
                ":now": number(now),
                ":due": number(now - shard.every_ms),
                ":expires": number(user_expires_at(now)),
            },
        )
        action = update(self._tables.users, shard.key, claim)
        try:
            return self._store.update(action, ReturnValues="ALL_NEW")
        except Cancelled:
            return None

    def _save(self, shard: Shard, position: Item, active: int, lease_ms: int) -> None:
        saved = Clause(
            set=("#position = :position", "counted = :counted", "leaseUntil = :until"),
            names={"#position": "position"},
            values={
                ":position": {"M": position},
                ":counted": number(active),
                ":until": number(self._now() + lease_ms if lease_ms else 0),
            },
        )
        self._store.update(update(self._tables.users, shard.key, saved))

    def _finish(self, shard: Shard, active: int) -> None:
        finished = Clause(
            set=("active = :active", "finishedAt = :now"),
            remove=("#position", "counted", "leaseUntil"),
            names={"#position": "position"},
            values={":active": number(active), ":now": number(self._now())},
        )
        self._store.update(update(self._tables.users, shard.key, finished))

    def _report_active(self) -> None:
        active = active_connections(self._store)
        if active is not None:
            self._report(active)


def active_connections(store: Store) -> int | None:
    """How many there were when the table was last swept; None before that. Raises Unavailable."""
    keys = [str(shard.key["user"]["S"]) for shard in CONNECTIONS]
    pages = store.batch_get(store.tables.users, "user", keys)
    counts = [int(item["active"]["N"]) for page in pages for item in page if "active" in item]
    return sum(counts) if len(counts) == SHARDS else None


def _is_short(deadline: float) -> bool:
    return time.monotonic() > deadline - PAGE_SECONDS
