"""The life of a connection: its states, and every transition between them.

| state | enters | leaves |
|---|---|---|
| active | `open`; `record_activity` (a message from the client); `revive` (a probe succeeded) | |
| stale | no activity for long, which needs no write (`Connection.status_at`); `mark_stale` (a \
delivery timed out) | `record_activity`, `revive` → active; `remove` (a probe failed) |
| terminated | `remove` (disconnected, gone, refused, token expired, evicted, closed by API) | |

`open` and `remove` are several writes (see `handshakes` and `removals`), in such an order that a
crash between two of them loses nothing that the sweep doesn't find. The changes of an active
connection, `join`, `leave` and `refresh`, are one transaction each. They are counted in its item,
so that `remove` notices one that happens meanwhile.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import BadRequest, ConnectionGone, Unavailable
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.connection_expressions import (
    add_group,
    add_refusal,
    add_tie,
    count_change,
    delete_membership,
    has_groups,
    has_no_refusals,
    has_principal,
    put_membership,
    put_roster_entry,
    remove_group,
    remove_joined_at,
    remove_refusals,
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
from chalicelib.store.handshakes import Handshakes
from chalicelib.store.items import Connection, Recipient, Status
from chalicelib.store.lru import LruDict
from chalicelib.store.memberships import Memberships
from chalicelib.store.rate_limits import UserRateLimiter
from chalicelib.store.removals import Removals
from chalicelib.store.schema import Item, connection_key

MAX_GROUPS = aws_limits.CONNECTION_GROUPS
TRIES = 5  # while others change the connection
CACHED_CONNECTIONS = 10_000


class _Changed(Exception):
    """A connection is not as assumed: its token was refreshed, or a frame was refused."""

    def __init__(self, item: Item) -> None:
        super().__init__("the connection has changed")
        self.item = item


class Connections:
    """The transitions of connections.

    Every method raises Unavailable if storage is unavailable.
    """

    def __init__(
        self,
        store: Store,
        *,
        handshakes: Handshakes,
        message_limiter: UserRateLimiter,
        memberships: Memberships,
        metrics: Metrics,
        cached_connections: int = CACHED_CONNECTIONS,
    ) -> None:
        """Take the parts.

        Args:
            handshakes: Opens connections.
            cached_connections: The number of connections of which it remembers what their items
                say: the principal of those that were refreshed, and whether a frame was refused.
        """
        self.handshakes = handshakes
        self._store = store
        self._tables = store.tables
        self._message_limiter = message_limiter
        self._memberships = memberships
        self._removals = Removals(store, memberships=memberships, metrics=metrics)
        self._refreshed: LruDict[str, Principal] = LruDict(cached_connections)
        self._refused: LruDict[str, None] = LruDict(cached_connections)

    # --- To active

    def open(self, connection: Connection) -> None:
        """Store a connection. See `Handshakes.open`."""
        self.handshakes.open(connection)

    def record_activity(
        self,
        connection_id: str,
        opened_as: Principal,
        now: EpochMs,
        messages: int,
        *,
        units: int = 1,
        refused: bool = False,
    ) -> Principal:
        """Record a frame from the client, and charge its user.

        Args:
            connection_id: The connection's id.
            opened_as: The principal that it was opened with; only `refresh` changes it.
            messages: The number of messages in the frame.
            units: What the frame costs; see `protocol.cost`.
            refused: Whether the frame will be refused, so that the frames refused before it can't
                be over with it.

        Returns:
            The connection's present principal.

        Raises:
            ConnectionGone: The connection is terminated.
            RateLimited, QuotaExceeded: The user sends too much.
        """
        principal = self._refreshed.get(connection_id, opened_as)
        for _ in range(TRIES):
            clauses = [has_principal(principal), set_active(now)]
            if not refused and connection_id not in self._refused:
                clauses.append(has_no_refusals())
            write = partial(self._write_activity, connection_id, principal, now, clauses)
            try:
                self._message_limiter.charge(
                    opened_as.key, now, write, messages=messages, units=units
                )
            except _Changed as changed:
                principal = Connection.from_item(changed.item).principal
                self._refreshed[connection_id] = principal
                if "refused" in changed.item:
                    self._refused[connection_id] = None
            else:
                return principal
        raise Unavailable("the connection is changing too fast", retry_after=1.0)

    def _write_activity(
        self,
        connection_id: str,
        principal: Principal,
        now: EpochMs,
        clauses: Sequence[Clause],
        charge: Sequence[Clause],
    ) -> Item | None:
        """Record activity together with its charge. See `WriteCharge`.

        Raises _Changed if a condition of the connection's clauses failed.
        """
        actions = [
            update_connection(self._tables, connection_id, *clauses),
            update_user(self._tables, principal.key, set_last_seen(now), *charge),
        ]
        try:
            self._store.transact(actions)
        except Cancelled as cancelled:
            stored, user = cancelled.items
            if stored is None:
                return user
            if not stored:
                raise _ended() from None
            raise _Changed(stored) from None
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

    # --- Refused frames

    def count_refusal(self, connection_id: str) -> int:
        """Count a refused frame; return how many were refused in a row.

        Raises ConnectionGone if the connection is terminated.
        """
        action = update_connection(self._tables, connection_id, add_refusal())
        try:
            counted = self._store.update(action, ReturnValues="UPDATED_NEW")
        except Cancelled:
            raise _ended() from None
        self._refused[connection_id] = None
        return int(counted["refused"]["N"])

    def end_refusals(self, connection_id: str) -> None:
        """Start the count again, since a frame was accepted.

        Takes a call only if a frame was refused before: `record_activity` has noticed if that was
        in another environment.
        """
        if connection_id in self._refused:
            self._update_if_present(connection_id, remove_refusals())
            self._refused.pop(connection_id, None)

    # --- To terminated

    def remove(self, recipient: Recipient, now: EpochMs, groups: Collection[str] = ()) -> bool:
        """Remove a connection. See `Removals.remove`."""
        return self._removals.remove(recipient, now, groups)

    def untie(self, recipient: Recipient, now: EpochMs) -> bool:
        """Remove what is left of a connection that is not stored. See `Removals.untie`."""
        return self._removals.untie(recipient, now)

    # --- Changes of an active connection

    def join(self, connection: Connection, group: str, now: EpochMs) -> None:
        """Make a connection a member of a group.

        Raises BadRequest if it is in too many groups, and ConnectionGone if it is terminated.
        """
        clauses = [add_group(group, MAX_GROUPS), count_change()]
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
        self._change(connection, [remove_group(group), count_change()], others)

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
                    count_change(),
                    remove_joined_at(lost),
                ],
                [
                    update_user(self._tables, recipient.user_key, *user_clauses),
                    put_roster_entry(self._tables, renewed),
                    *(put_membership(self._tables, renewed, group) for group in kept),
                    *(delete_membership(self._tables, recipient, group) for group in lost),
                    *self._memberships.on_leave(recipient, lost, now),
                ],
            )
            if stored is None:
                self._refreshed[connection.connection_id] = principal
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


def _ended() -> ConnectionGone:
    return ConnectionGone("the connection has ended: connect again")
