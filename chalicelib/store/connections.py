"""The life of a connection: its states, and every transition between them.

| state | enters | leaves |
|---|---|---|
| active | `open`; a frame from the client (see `activity`); `revive` (a probe succeeded) | |
| stale | no activity for long; `mark_stale` (a delivery timed out) | a frame, `revive` → active; \
`remove` (a probe failed) |
| terminated | `remove` (disconnected, gone, refused, token expired, evicted, closed by API) | |

Whether a connection is active or stale follows from its last activity, which its own item or its
user's notes (`Connection.with_activity`, `status_at`).

`open` and `remove` are several writes (see `handshakes` and `removals`), in such an order that a
crash between two of them loses nothing that the sweep doesn't find. The changes of an active
connection, `join`, `leave` and `refresh`, are one transaction each. They are counted in its item,
so that `remove` notices one that happens meanwhile.
"""

from collections.abc import Collection, Sequence
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
    count_change,
    delete_membership,
    has_groups,
    has_no_activity_since,
    has_tie,
    put_membership,
    put_roster_entry,
    remove_group,
    remove_joined_at,
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
from chalicelib.store.items import Connection, Recipient
from chalicelib.store.memberships import Memberships
from chalicelib.store.removals import Removals
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
        self._removals = Removals(store, memberships=memberships, metrics=metrics)

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
