"""The life of a connection: its states, and every transition between them.

| state | enters | leaves |
|---|---|---|
| active | `open`; a frame from the client (see `activity`); `revive` (a probe succeeded) | |
| stale | no activity for long; `mark_stale` (a delivery timed out) | a frame, `revive` → active; \
`remove` (a probe failed) |
| terminated | `remove` (disconnected, gone, refused, token expired, evicted, closed by API) | |

Whether a connection is active or stale follows from its last activity, which its own item or its
user's notes (`Connection.with_activity`, `status_at`).

Each transition is one transaction over three tables (see `items`), so that a crash leaves all of it
or nothing. So are the changes of an active connection: `join`, `leave` and `refresh`.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import BadRequest, Unavailable
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.activity import ActivityRecorder, ended
from chalicelib.store.connection_expressions import (
    add_group,
    add_tie,
    add_tombstone,
    delete_connection,
    delete_membership,
    has_groups,
    has_no_activity_since,
    has_tie,
    joined_as_it_opened,
    put_membership,
    remove_group,
    remove_joined_at,
    remove_tie,
    set_active,
    set_joined_at,
    set_last_seen,
    set_noted_principal,
    set_principal,
    set_stale,
    update_connection,
    update_user,
)
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Action, Clause
from chalicelib.store.handshakes import Handshakes
from chalicelib.store.items import Connection, Recipient, joined_at
from chalicelib.store.memberships import Memberships
from chalicelib.store.schema import Item, connection_key

MAX_GROUPS = aws_limits.CONNECTION_GROUPS
TRIES = 5  # while others change the connection


class Connections:
    """The transitions of connections.

    Every method raises Unavailable if storage is unavailable.
    """

    def __init__(
        self,
        store: Store,
        *,
        handshakes: Handshakes,
        activity: ActivityRecorder,
        memberships: Memberships,
        metrics: Metrics,
    ) -> None:
        """Take the parts.

        Args:
            handshakes: Opens connections.
            activity: Records what their clients do.
        """
        self.handshakes = handshakes
        self.activity = activity
        self._store = store
        self._tables = store.tables
        self._memberships = memberships
        self._metrics = metrics

    # --- To active

    def open(self, connection: Connection) -> None:
        """Store a connection. See `Handshakes.open`."""
        self.handshakes.open(connection)

    def revive(self, connection_id: str, now: EpochMs) -> None:
        """Mark a connection active, since a probe showed that its socket is open."""
        self._update_if_present(connection_id, set_active(now))

    def copy_activity(self, connection_id: str, at: EpochMs) -> None:
        """Mark a connection active, since its user's item notes a frame at `at`.

        Changes nothing if its own item has something later.
        """
        self._update_if_present(connection_id, set_active(at), has_no_activity_since(at))

    # --- To stale

    def mark_stale(self, connection_id: str, now: EpochMs) -> None:
        """Mark a connection stale, since a delivery to it failed and it may be dead."""
        self._update_if_present(connection_id, set_stale(now))

    def _update_if_present(self, connection_id: str, *clauses: Clause) -> None:
        with suppress(Cancelled):  # it is terminated: an update would create a ghost
            self._store.update(update_connection(self._tables, connection_id, *clauses))

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
                has_tie(recipient),
                add_tie(renewed),
                set_noted_principal(renewed),
                set_last_seen(now),
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
                self.activity.note_refresh(connection.connection_id, principal)
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
                raise ended() from None
            return stored
        return None

    # --- Reads

    def find(self, connection_id: str) -> Connection | None:
        """Return the connection with this id; None if it is terminated or never existed."""
        item = self._store.get(self._tables.connections, connection_key(connection_id))
        return None if item is None else Connection.from_item(item)
