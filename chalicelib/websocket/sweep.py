"""Periodic sweep: finds what no event reported, and repairs it.

That is a dead connection whose `$disconnect` was lost, a stale connection, a connection whose token
has expired, a connection that a refused handshake left behind, and an id in a user's item whose
connection DynamoDB's TTL has deleted. Nothing tells a connection whose handshake was refused from
one that has been silent since, so the sweep probes each of them once.

A sweep scans both tables in shards (the segments of a parallel scan), page by page. The progress of
each shard is stored, so the next sweep continues one that ran out of time or died, and two sweeps
at once share the work.
"""

import logging
import random
from collections.abc import Sequence
from typing import Any

from chalicelib.auth.principal import split_user_key
from chalicelib.clock import Clock
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics, Unit
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import ItemPage, Store
from chalicelib.store.items import Connection, Recipient, Status, connection_ids
from chalicelib.store.schema import Item
from chalicelib.store.sweep_progress import (
    CONNECTIONS,
    SHARDS,
    USERS,
    ShardProgress,
    SweepProgress,
    SweepShard,
    SweptTable,
)

PAGE_ITEMS = 1000
PAGE_SECONDS = 8.0  # a page takes at most this long: no page begins with less time left

logger = logging.getLogger("herald.sweep")


class Sweeper:
    """Sweeps the connections table and the users table."""

    def __init__(
        self,
        store: Store,
        *,
        progress: SweepProgress,
        connections: Connections,
        outcome_recorder: OutcomeRecorder,
        disconnector: Disconnector,
        stale_after_seconds: int,
        metrics: Metrics,
        now: Clock,
        page_items: int = PAGE_ITEMS,
    ) -> None:
        """Take the parts.

        Args:
            store: Its connections and users tables are swept.
            page_items: How many items to scan at a time.
        """
        self._store = store
        self._progress = progress
        self._connections = connections
        self._outcome_recorder = outcome_recorder
        self._disconnector = disconnector
        self._stale_after_seconds = stale_after_seconds
        self._metrics = metrics
        self._now = now
        self._page_items = page_items

    def sweep(self, deadline: Deadline) -> None:
        """Sweep the shards that are due, until the deadline.

        Raises Unavailable when storage is.
        """
        for shard in random.sample(CONNECTIONS, SHARDS) + random.sample(USERS, SHARDS):
            if _is_short(deadline):
                break
            progress = self._progress.claim(shard)
            if progress is not None:
                self._sweep_shard(shard, progress, deadline)
        active = self._progress.active_connections()
        if active is not None:
            self._metrics.value("ActiveConnections", active, Unit.COUNT)

    def _sweep_shard(self, shard: SweepShard, progress: ShardProgress, deadline: Deadline) -> None:
        """Sweep a claimed shard from `progress` on, to its end or until time is short."""
        position, active = progress.position, progress.active
        while True:
            items, position = self._read_page(shard, position)
            page_deadline = deadline.within(PAGE_SECONDS)
            if shard.table is SweptTable.USERS:
                self._sweep_users(items)
            else:
                active += self._sweep_connections(items, page_deadline)
            if position is None:
                self._progress.finish(shard, active)
                return
            short = _is_short(deadline)
            self._progress.save(shard, ShardProgress(position, active), release=short)
            if short:
                return

    def _read_page(self, shard: SweepShard, position: Item | None) -> ItemPage:
        """Return the next page of a shard. Of a user's item, return the connection ids alone."""
        start: Any = {} if position is None else {"ExclusiveStartKey": position}
        selection: Any = {}
        table = self._store.tables.connections
        if shard.table is SweptTable.USERS:
            table = self._store.tables.users
            selection = {
                "FilterExpression": "attribute_exists(#connections)",
                "ProjectionExpression": "#user, #connections",
                "ExpressionAttributeNames": {"#user": "user", "#connections": "connections"},
            }
        return next(
            self._store.scan(
                table,
                Segment=shard.number,
                TotalSegments=SHARDS,
                Limit=self._page_items,
                **start,
                **selection,
            )
        )

    def _sweep_connections(self, items: Sequence[Item], deadline: Deadline) -> int:
        """Disconnect expired connections, and probe stale and unproven ones.

        Returns how many are active.
        """
        now = self._now()
        expired: list[Recipient] = []
        doubtful: list[Recipient] = []
        active = 0
        for item in items:
            try:
                connection = Connection.from_item(item)
            except (KeyError, ValueError):
                connection_id = item["connectionId"]["S"]
                logger.error("the item of %s is not one of Herald's connections", connection_id)
                continue
            recipient = connection.recipient
            if recipient.token_until <= now / 1000:
                expired.append(recipient)
            elif (
                recipient.is_outlived(now)
                or connection.is_unproven(now)
                or connection.status_at(now, self._stale_after_seconds) is Status.STALE
            ):
                doubtful.append(recipient)
            else:
                active += 1
        self._disconnector.disconnect_expired(expired, deadline)
        outcomes = self._outcome_recorder.probe(doubtful, deadline) if doubtful else []
        return active + sum(outcome.result is Result.DELIVERED for outcome in outcomes)

    def _sweep_users(self, items: Sequence[Item]) -> None:
        """Remove connection ids from users' items if the connection no longer has an item."""
        lost = {
            connection_id: split_user_key(item["user"]["S"])
            for item in items
            for connection_id in connection_ids(item)
        }
        table = self._store.tables.connections
        for page in self._store.batch_get(table, "connectionId", list(lost)):
            for item in page:
                del lost[item["connectionId"]["S"]]
        for connection_id, (tenant, user_id) in lost.items():
            logger.info(
                "removed a lost connection from its user",
                extra={"connectionId": connection_id, "userId": user_id, "tenant": tenant or ""},
            )
            self._connections.untie(Recipient(connection_id, user_id, tenant, ""), self._now())


def _is_short(deadline: Deadline) -> bool:
    """Return whether there is too little time left for another page."""
    return deadline.left() < PAGE_SECONDS
