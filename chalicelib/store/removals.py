"""The end of a connection: deleting its items, in an order in which a crash loses nothing.

1. During its handshake alone, a tombstone is added to the user's item. The answer shows whether the
   connection is tied.
2. If it is in groups, one batch records its past memberships, and deletes its memberships and its
   roster entry.
3. Its item is deleted, on condition that it still is in these groups.
4. If it is in no groups, its roster entry is deleted.
5. It is untied. Of several that remove it at once, one does this, and counts the end.

The connection's item says which memberships there are, so it is deleted after them. The tie says
that something may be left, so it is deleted last. The sweep finds both.
"""

from collections.abc import Collection

from chalicelib.clock import EpochMs
from chalicelib.errors import Unavailable
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.connection_expressions import (
    add_tombstone,
    delete_connection,
    delete_membership,
    delete_roster_entry,
    has_changes,
    has_groups,
    has_tie,
    remove_tie,
    set_last_seen,
    set_user_expiry,
    update_user,
)
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause
from chalicelib.store.items import Recipient, connection_ids, joined_at, recipients_of
from chalicelib.store.memberships import Memberships
from chalicelib.store.schema import Item, connection_key

TRIES = 5  # while others change the connection


class Removals:
    """Removes connections. Every method raises Unavailable if storage is unavailable."""

    def __init__(self, store: Store, *, memberships: Memberships, metrics: Metrics) -> None:
        self._store = store
        self._tables = store.tables
        self._memberships = memberships
        self._metrics = metrics

    def remove(self, recipient: Recipient, now: EpochMs, groups: Collection[str] = ()) -> bool:
        """Remove a connection, its memberships, its roster entry and its tie to its user.

        A connection that may still be in its handshake can't be tied afterwards, in case its
        `$disconnect` has overtaken its `$connect`. If it isn't tied yet, its `$connect` finds that
        out, and takes back what it has stored.

        Args:
            recipient: The connection.
            now: When it ended.
            groups: A guess at the groups that it is in. If it is in some, as guessed, its item is
                read first; if it is in none, as guessed, there is nothing to read.

        Returns:
            Whether this call untied it: of several at once, one does.
        """
        if recipient.may_be_in_handshake(now) and not self._add_tombstone(recipient, now):
            return False
        stored = self._read(recipient) if groups else self._delete(recipient, has_groups(()))
        if stored:
            self._delete_grouped(recipient, stored, now)
            return self._untie(recipient, now)
        return self.untie(recipient, now)

    def untie(self, recipient: Recipient, now: EpochMs) -> bool:
        """Remove what is left of a connection that is not stored: its roster entry and its tie.

        Returns whether it was tied.
        """
        self._store.batch_write([delete_roster_entry(self._tables, recipient)])
        return self._untie(recipient, now)

    def _add_tombstone(self, recipient: Recipient, now: EpochMs) -> bool:
        """Add the tombstone of a connection; return whether it is tied."""
        clauses = (*add_tombstone(recipient, now), set_user_expiry(now))
        action = update_user(self._tables, recipient.user_key, *clauses)
        user = self._store.update(action, ReturnValues="ALL_NEW")
        return recipient.connection_id in connection_ids(user)

    def _read(self, recipient: Recipient) -> Item | None:
        key = connection_key(recipient.connection_id)
        return self._store.get(self._tables.connections, key)

    def _delete(self, recipient: Recipient, condition: Clause) -> Item | None:
        """Delete a connection's item; return the item if the condition fails."""
        action = delete_connection(self._tables, recipient.connection_id, condition)
        try:
            self._store.delete(action)
        except Cancelled as cancelled:
            return cancelled.items[0]
        return None

    def _delete_grouped(self, recipient: Recipient, stored: Item, now: EpochMs) -> None:
        """Delete a connection's item and its memberships, which may change meanwhile."""
        for _ in range(TRIES):
            joined = joined_at(stored)
            self._store.batch_write(
                [
                    *self._memberships.on_end(recipient, joined, now),
                    delete_roster_entry(self._tables, recipient),
                    *(delete_membership(self._tables, recipient, group) for group in joined),
                ]
            )
            changed = self._delete(recipient, has_changes(stored))
            if not changed:
                return
            stored = changed
        raise Unavailable("the connection's groups are changing too fast")

    def _untie(self, recipient: Recipient, now: EpochMs) -> bool:
        clauses = (remove_tie(recipient), set_last_seen(now), has_tie(recipient))
        action = update_user(self._tables, recipient.user_key, *clauses)
        try:
            user = self._store.update(action, ReturnValues="ALL_OLD")
        except Cancelled:
            return False
        self._metrics.count("ConnectionsClosed")
        for tied in recipients_of(user, recipient.user_id, recipient.tenant):
            if tied.connection_id == recipient.connection_id:
                self._metrics.value("ConnectionDuration", now - tied.connected_at)
        return True
