"""The life of a connection: its states, and every transition between them.

| state | enters | leaves |
|---|---|---|
| active | `open`; `record_activity` (a message from the client); `revive` (a probe succeeded) | |
| stale | no activity for long, which needs no write (`Connection.status_at`); `mark_stale` (a \
delivery timed out) | `record_activity`, `revive` → active; `remove` (a probe failed) |
| terminated | `remove` (disconnected, gone, refused, token expired, evicted, closed by API) | |

Each transition is one transaction over three tables (see `items`), so that a crash leaves all of it
or nothing. So are the changes of an active connection: `join`, `leave` and `refresh`.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import BadRequest, ConnectionGone, TooManyConnections, Unavailable
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.connection_expressions import (
    add_group,
    add_tie,
    add_tombstone,
    claim_probe,
    delete_connection,
    delete_membership,
    has_groups,
    has_principal,
    has_room_for,
    has_tie,
    joined_as_it_opened,
    put_connection,
    put_membership,
    remove_group,
    remove_joined_at,
    remove_tie,
    set_active,
    set_joined_at,
    set_last_seen,
    set_principal,
    set_status,
    update_connection,
    update_user,
)
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Action, Clause
from chalicelib.store.items import (
    Connection,
    Recipient,
    Status,
    connection_ids,
    joined_at,
    recipients_of,
)
from chalicelib.store.memberships import Memberships
from chalicelib.store.rate_limits import UserRateLimiter
from chalicelib.store.schema import CLOSED_SLOTS, Item, connection_key

MAX_GROUPS = aws_limits.CONNECTION_GROUPS
TRIES = 5  # while others change the connection's groups or principal
CACHED_PRINCIPALS = 10_000


class LimitReached(TooManyConnections):
    """The user has as many connections as allowed: `recipients`, the oldest first."""

    def __init__(self, limit: int, recipients: list[Recipient]) -> None:
        super().__init__(f"the limit of {limit} connections per user is reached")
        self.recipients = recipients


class _PrincipalChanged(Exception):
    """A connection's principal is another one than assumed, since its token was refreshed."""

    def __init__(self, principal: Principal) -> None:
        super().__init__("the connection has another principal")
        self.principal = principal


class Connections:
    """The transitions of connections.

    Every method raises Unavailable if storage is unavailable.
    """

    def __init__(
        self,
        store: Store,
        *,
        limit: int,
        connect_limiter: UserRateLimiter,
        message_limiter: UserRateLimiter,
        memberships: Memberships,
        metrics: Metrics,
        cached_principals: int = CACHED_PRINCIPALS,
    ) -> None:
        """Take the parts.

        Args:
            limit: The most connections that a user may have.
            cached_principals: The number of refreshed connections whose principals are cached.
        """
        self._store = store
        self._tables = store.tables
        self._limit = limit
        self._connect_limiter = connect_limiter
        self._message_limiter = message_limiter
        self._memberships = memberships
        self._metrics = metrics
        self._cached_principals = cached_principals
        self._refreshed: OrderedDict[str, Principal] = OrderedDict()

    # --- To active

    def open(self, connection: Connection) -> None:
        """Store a connection, its tie to its user, and its memberships.

        Opening a connection again changes nothing.

        Raises:
            LimitReached: The user has as many connections as allowed. This is exact, however many
                connect at once.
            RateLimited: The user connects too often.
            ConnectionGone: Its `$disconnect` came first.
        """
        write = partial(self._write_open, connection)
        self._connect_limiter.charge(connection.recipient.user_key, connection.timestamp, write)

    def _write_open(self, connection: Connection, charge: Sequence[Clause]) -> Item | None:
        """Open a connection together with its charge. See `WriteCharge`."""
        user_clauses = (
            add_tie(connection),
            set_last_seen(connection.timestamp),
            has_room_for(connection.connection_id, self._limit),
            *charge,
        )
        actions = [
            put_connection(self._tables, connection),
            update_user(self._tables, connection.recipient.user_key, *user_clauses),
            *(put_membership(self._tables, connection, group) for group in connection.groups),
        ]
        try:
            self._store.transact(actions)
        except Cancelled as cancelled:
            stored, user = cancelled.items[:2]
            if stored:
                return None  # it is open already
            self._require_room(connection.recipient, user or {})
            return user or {}
        return None

    def _require_room(self, recipient: Recipient, user: Mapping[str, Any]) -> None:
        """Raise ConnectionGone or LimitReached if a user's item refuses a connection."""
        tombstones = [user[slot]["SS"] for slot in CLOSED_SLOTS if slot in user]
        if any(recipient.connection_id in ids for ids in tombstones):
            raise ConnectionGone("the client has disconnected already")
        if len(connection_ids(user)) >= self._limit:
            recipients = recipients_of(user, recipient.user_id, recipient.tenant)
            raise LimitReached(self._limit, recipients)

    def record_activity(
        self,
        connection_id: str,
        opened_as: Principal,
        now: EpochMs,
        messages: int,
        *,
        units: int = 1,
    ) -> Principal:
        """Record a frame from the client, and charge its user.

        Args:
            connection_id: The connection's id.
            opened_as: The principal that it was opened with; only `refresh` changes it.
            messages: The number of messages in the frame.
            units: What the frame costs; see `protocol.cost`.

        Returns:
            The connection's present principal.

        Raises:
            ConnectionGone: The connection is terminated.
            RateLimited, QuotaExceeded: The user sends too much.
        """
        principal = self._refreshed.get(connection_id, opened_as)
        for _ in range(TRIES):
            write = partial(self._write_activity, connection_id, principal, now)
            try:
                self._message_limiter.charge(
                    opened_as.key, now, write, messages=messages, units=units
                )
            except _PrincipalChanged as changed:
                principal = changed.principal
                self._cache_principal(connection_id, principal)
            else:
                return principal
        raise Unavailable("the connection's token is changing too fast", retry_after=1.0)

    def _write_activity(
        self, connection_id: str, principal: Principal, now: EpochMs, charge: Sequence[Clause]
    ) -> Item | None:
        """Record activity together with its charge. See `WriteCharge`.

        Raises _PrincipalChanged if the connection doesn't have this principal.
        """
        connection_clauses = (has_principal(principal), set_active(now))
        user_clauses = (set_last_seen(now), *charge)
        actions = [
            update_connection(self._tables, connection_id, *connection_clauses),
            update_user(self._tables, principal.key, *user_clauses),
        ]
        try:
            self._store.transact(actions)
        except Cancelled as cancelled:
            stored, user = cancelled.items
            if stored is None:
                return user
            if not stored:
                raise _ended() from None
            raise _PrincipalChanged(Connection.from_item(stored).principal) from None
        return None

    def revive(self, connection_id: str, now: EpochMs) -> None:
        """Mark a connection active, since a probe showed that its socket is open."""
        self._update_if_present(connection_id, set_active(now))

    # --- To stale

    def mark_stale(self, connection_id: str) -> None:
        """Mark a connection stale, since a delivery to it failed and it may be dead."""
        self._update_if_present(connection_id, set_status(Status.STALE))

    def _update_if_present(self, connection_id: str, clause: Clause) -> None:
        with suppress(Cancelled):  # it is terminated: an update would create a ghost
            self._store.update(update_connection(self._tables, connection_id, clause))

    # --- To terminated

    def remove(self, recipient: Recipient, now: EpochMs, groups: Iterable[str] = ()) -> bool:
        """Remove a connection, its tie to its user, and its memberships.

        A connection that may still be in its handshake can't be opened afterwards, in case its
        `$disconnect` has overtaken its `$connect`.

        Args:
            recipient: The connection.
            groups: A guess at the groups that it is in. If it is right, one call is saved.

        Returns:
            Whether the connection was stored.
        """
        joined = dict.fromkeys(groups, recipient.connected_at)
        conditions = [joined_as_it_opened(joined)]
        user_clauses = (
            remove_tie(recipient),
            *add_tombstone(recipient, now),
            set_last_seen(now),
        )
        for _ in range(TRIES):
            actions = [
                delete_connection(self._tables, recipient.connection_id, joined, *conditions),
                update_user(self._tables, recipient.user_key, *user_clauses),
                *(delete_membership(self._tables, recipient, group) for group in joined),
                *self._memberships.on_end(recipient, joined, now),
            ]
            try:
                self._store.transact(actions)
            except Cancelled as cancelled:
                stored = cancelled.items[0]
            else:
                self._metrics.count("ConnectionsClosed")
                self._metrics.value("ConnectionDuration", now - recipient.connected_at)
                return True
            if not stored:
                self.untie(recipient, now)
                return False
            joined, conditions = joined_at(stored), []
        raise Unavailable("the connection's groups are changing too fast")

    def untie(self, recipient: Recipient, now: EpochMs) -> None:
        """Remove a connection that is not stored from its user's item."""
        tombstone = add_tombstone(recipient, now)
        others = [*tombstone, set_last_seen(now)]
        if not tombstone:
            others = [has_tie(recipient)]
        clauses = (remove_tie(recipient), *others)
        with suppress(Cancelled):  # the user's item doesn't have it
            self._store.update(update_user(self._tables, recipient.user_key, *clauses))

    # --- Changes of an active connection

    def join(self, connection: Connection, group: str, now: EpochMs) -> None:
        """Make a connection a member of a group.

        Raises BadRequest if it is in too many groups, and ConnectionGone if it is terminated.
        """
        clauses = [add_group(group, MAX_GROUPS)]
        if group not in connection.groups:
            clauses.append(set_joined_at(group, now))
        membership = put_membership(self._tables, connection, group)
        if self._change(connection, clauses, [membership]) is not None:
            raise BadRequest(f"a connection can be in at most {MAX_GROUPS} groups")

    def leave(self, connection: Connection, group: str, now: EpochMs) -> None:
        """End a connection's membership in a group, if it has one.

        Raises ConnectionGone if the connection is terminated.
        """
        recipient = connection.recipient
        others = [
            delete_membership(self._tables, recipient, group),
            *self._memberships.on_leave(recipient, [group], now),
        ]
        self._change(connection, [remove_group(group)], others)

    def refresh(self, connection: Connection, principal: Principal, now: EpochMs) -> None:
        """Give a connection the principal of a new token of the same user.

        It leaves the groups that the new token doesn't allow. Raises ConnectionGone if it is
        terminated.
        """
        for _ in range(TRIES):
            kept = frozenset(filter(principal.may_join, connection.groups))
            renewed = replace(connection, principal=principal, groups=kept)
            recipient, lost = connection.recipient, connection.groups - kept
            user_clauses = (
                add_tie(renewed),
                set_last_seen(renewed.timestamp),
            )
            stored = self._change(
                connection,
                [
                    has_groups(connection.groups),
                    *set_principal(renewed),
                    remove_joined_at(lost),
                ],
                [
                    update_user(self._tables, recipient.user_key, *user_clauses),
                    *(put_membership(self._tables, renewed, group) for group in kept),
                    *(delete_membership(self._tables, recipient, group) for group in lost),
                    *self._memberships.on_leave(recipient, lost, now),
                ],
            )
            if stored is None:
                self._cache_principal(connection.connection_id, principal)
                return
            connection = Connection.from_item(stored)
        raise Unavailable("the connection's groups are changing too fast")

    def _change(
        self, connection: Connection, clauses: Sequence[Clause], others: Sequence[Action]
    ) -> Item | None:
        """Update a connection together with other actions.

        Returns None, or the connection's item if a condition of the clauses failed. Raises
        ConnectionGone if it is terminated.
        """
        action = update_connection(self._tables, connection.connection_id, *clauses)
        try:
            self._store.transact([action, *others])
        except Cancelled as cancelled:
            stored = cancelled.items[0]
            if not stored:
                raise _ended() from None
            return stored
        return None

    # --- Reads

    def find(self, connection_id: str) -> Connection | None:
        """Return the connection with this id; None if it is terminated or never existed."""
        item = self._store.get(self._tables.connections, connection_key(connection_id))
        return None if item is None else Connection.from_item(item)

    def may_probe(self, user_key: str, now: EpochMs) -> bool:
        """Return whether the connections of a user at the limit may be probed: once a minute."""
        try:
            self._store.update(update_user(self._tables, user_key, claim_probe(now)))
        except Cancelled:
            return False
        return True

    def _cache_principal(self, connection_id: str, principal: Principal) -> None:
        self._refreshed[connection_id] = principal
        self._refreshed.move_to_end(connection_id)
        if len(self._refreshed) > self._cached_principals:
            self._refreshed.popitem(last=False)


def _ended() -> ConnectionGone:
    return ConnectionGone("the connection has ended: connect again")
