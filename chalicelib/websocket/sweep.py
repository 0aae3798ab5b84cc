"""Periodic sweep: finds what no event reported, and repairs it.

That is a dead connection whose `$disconnect` was lost, a stale connection, a connection whose token
has expired, a connection that a refused handshake left behind, and an id in a user's item whose
connection DynamoDB's TTL has deleted. Nothing tells a connection whose handshake was refused from
one that has been silent since, so the first sweep after its handshake probes each of them.

Frames are noted in users' items alone. So a connection whose own item looks silent is doubtful only
if its user's item notes nothing either; a sweep reads the users' items of a page together.

A sweep scans both tables in shards (the segments of a parallel scan), page by page. The progress of
each shard is stored, so the next sweep continues one that ran out of time or died, and two sweeps
at once share the work.
"""

import logging
import random
from collections.abc import Sequence
from concurrent.futures import Executor, wait
from typing import Any

from chalicelib.auth.principal import split_user_key
from chalicelib.clock import Clock, EpochMs
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics, Unit
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import ItemPage, Store
from chalicelib.store.items import Connection, Recipient, Status, connection_ids
from chalicelib.store.schema import Item, user_item_key
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
HANDSHAKE_MARGIN_MS = 60_000
"""A connection that opened so shortly before a sweep began may have been in its handshake, or not
visible, when the sweep came to it."""
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
        writers: Executor,
        now: Clock,
        page_items: int = PAGE_ITEMS,
    ) -> None:
        """Take the parts.

        Args:
            store: Its connections and users tables are swept.
            writers: Runs the writes.
            page_items: How many items to scan at a time.
        """
        self._store = store
        self._progress = progress
        self._connections = connections
        self._outcome_recorder = outcome_recorder
        self._disconnector = disconnector
        self._stale_after_seconds = stale_after_seconds
        self._metrics = metrics
        self._writers = writers
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
        while True:
            items, position = self._read_page(shard, progress.position)
            active = progress.active
            if shard.table is SweptTable.USERS:
                self._sweep_users(items)
            else:
                since = EpochMs(progress.last_began_at - HANDSHAKE_MARGIN_MS)
                active += self._sweep_connections(items, since, deadline.within(PAGE_SECONDS))
            progress = progress._replace(position=position, active=active)
            if position is None:
                self._progress.finish(shard, progress)
                return
            short = _is_short(deadline)
            self._progress.save(shard, progress, release=short)
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

    def _sweep_connections(self, items: Sequence[Item], since: EpochMs, deadline: Deadline) -> int:
        """Disconnect expired connections, and probe doubtful ones; see `_doubtful` for `since`.

        Returns how many are active.
        """
        now = self._now()
        live: list[Connection] = []
        expired: list[Recipient] = []
        for connection in map(_connection_of, items):
            if connection is None:
                continue
            if connection.recipient.token_until <= now / 1000:
                expired.append(connection.recipient)
            else:
                live.append(connection)
        self._disconnector.disconnect_expired(expired, deadline)
        doubtful = self._doubtful(live, since, deadline)
        outcomes = self._outcome_recorder.probe(doubtful, deadline) if doubtful else []
        alive = sum(outcome.result is Result.DELIVERED for outcome in outcomes)
        return len(live) - len(doubtful) + alive

    def _doubtful(
        self, connections: Sequence[Connection], since: EpochMs, deadline: Deadline
    ) -> list[Recipient]:
        """Return the connections to probe: stale, unproven or outlived by all that is noted.

        An unproven connection that opened before `since` was looked at by an earlier sweep. Where
        the user's item shows that a stale connection is active, its own item is made to say so, and
        the next sweeps don't look again.
        """
        now = self._now()
        silent = [one for one in connections if self._is_doubtful(one, now, since)]
        users = self._users_of(silent)
        doubtful: list[Recipient] = []
        heard: list[Connection] = []
        for own in silent:
            connection = own.with_activity(users.get(own.principal.key, {}))
            if self._is_doubtful(connection, now, since):
                doubtful.append(connection.recipient)
            elif self._is_stale(own, now):
                heard.append(connection)
        self._copy_activity(heard, deadline)
        return doubtful

    def _is_doubtful(self, connection: Connection, now: EpochMs, since: EpochMs) -> bool:
        unproven = connection.connected_at >= since and connection.is_unproven(now)
        return unproven or self._is_stale(connection, now) or connection.recipient.is_outlived(now)

    def _is_stale(self, connection: Connection, now: EpochMs) -> bool:
        return connection.status_at(now, self._stale_after_seconds) is Status.STALE

    def _users_of(self, connections: Sequence[Connection]) -> dict[str, Item]:
        """Return the users' items of connections by their keys.

        They may be a second old: then a connection is probed that has just sent a frame.
        """
        keys = {one.principal.key for one in connections}
        pages = self._store.batch_get_keys(
            self._store.tables.users, [user_item_key(key) for key in keys], ConsistentRead=False
        )
        return {item["user"]["S"]: item for page in pages for item in page}

    def _copy_activity(self, connections: Sequence[Connection], deadline: Deadline) -> None:
        """Copy the activity in users' items to the connections' own, as far as there is time."""
        copies = [
            self._writers.submit(self._connections.copy_activity, one.connection_id, one.timestamp)
            for one in connections
        ]
        done, late = wait(copies, timeout=deadline.left())
        for copy in late:
            copy.cancel()  # the next sweep comes to it again
        for copy in done:
            copy.result()

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


def _connection_of(item: Item) -> Connection | None:
    """Return the connection of an item; None, and a line in the log, if it is not Herald's."""
    try:
        return Connection.from_item(item)
    except (KeyError, ValueError):
        connection_id = item["connectionId"]["S"]
        logger.error("the item of %s is not one of Herald's connections", connection_id)
        return None


def _is_short(deadline: Deadline) -> bool:
    """Return whether there is too little time left for another page."""
    return deadline.left() < PAGE_SECONDS
