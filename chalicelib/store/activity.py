"""The activity of clients: their frames, their heartbeats, and which frames were refused.

A frame is one conditional update of its user's item. It charges the user and notes when the
connection was active. Its condition says that the connection is still tied to its user, that its
principal is the assumed one, and that the frame before it was not refused. If the condition fails,
DynamoDB returns the user's item, which says why; the connection's own item is read only if its
token was refreshed elsewhere.

A heartbeat is one conditional update of the connection's own item. It is charged to nobody, so a
connection may send one a minute.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs, epoch_ms
from chalicelib.errors import ConnectionGone, RateLimited, Unavailable
from chalicelib.store.connection_expressions import (
    add_activity,
    add_refusal,
    has_no_refusals,
    has_noted_principal,
    has_principal,
    remove_refusals,
    set_heartbeat,
    set_last_seen,
    update_connection,
    update_user,
)
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause
from chalicelib.store.items import LONG_AGO, Connection, connection_ids, principal_digest
from chalicelib.store.lru import LruDict
from chalicelib.store.rate_limits import UserRateLimiter
from chalicelib.store.schema import PRINCIPAL_PREFIX, REFUSED_PREFIX, Item, connection_key

TRIES = 5  # while others refresh the connection's token
CACHED_CONNECTIONS = 10_000
HEARTBEAT_MS = 60_000  # a connection may send one in this time


class _Refreshed(Exception):
    """A connection's principal is not the assumed one, as its user's item says."""

    def __init__(self, user: Item) -> None:
        super().__init__("the connection's token was refreshed")
        self.user = user


class _Frame(NamedTuple):
    """A frame to record; see `record_frame`."""

    connection_id: str
    now: EpochMs
    refused: bool


class RecordedFrame(NamedTuple):
    """A frame that was recorded.

    `principal` is the connection's present principal. `user` is its user's item before the frame;
    it is empty if the limiter failed open.
    """

    principal: Principal
    user: Item


class ActivityRecorder:
    """Records the activity of clients.

    Every method raises Unavailable if storage is unavailable.
    """

    def __init__(
        self,
        store: Store,
        *,
        message_limiter: UserRateLimiter,
        cached_connections: int = CACHED_CONNECTIONS,
    ) -> None:
        """Take the parts.

        Args:
            message_limiter: Limits the frames of a user that have no limit of their own.
            cached_connections: The number of connections of which it remembers the principal, if
                their token was refreshed, the last heartbeat, and whether a frame was refused.
        """
        self._store = store
        self._tables = store.tables
        self._message_limiter = message_limiter
        self._refreshed: LruDict[str, Principal] = LruDict(cached_connections)
        self._heartbeats: LruDict[str, EpochMs] = LruDict(cached_connections)
        self._refused: LruDict[str, None] = LruDict(cached_connections)

    # --- Frames

    def record_frame(
        self,
        connection_id: str,
        opened_as: Principal,
        now: EpochMs,
        *,
        messages: int = 0,
        units: int = 1,
        refused: bool = False,
        limiter: UserRateLimiter | None = None,
    ) -> RecordedFrame:
        """Record a frame from a client, and charge its user.

        Args:
            connection_id: The connection's id.
            opened_as: The principal that it was opened with; only `refresh` changes it.
            now: The time.
            messages: The number of messages in the frame.
            units: What the frame costs; see `protocol.cost`.
            refused: Whether the frame will be refused, so that the frames refused before it can't
                be over with it.
            limiter: Charges the frame; by default, the limiter of messages.

        Raises:
            ConnectionGone: The connection is terminated.
            RateLimited, QuotaExceeded: The user sends too much.
        """
        frame = _Frame(connection_id, now, refused)
        limiter = limiter or self._message_limiter
        principal = self._refreshed.get(connection_id, opened_as)
        for _ in range(TRIES):
            user: Item = {}
            write = partial(self._write_frame, frame, principal, user)
            try:
                limiter.charge(opened_as.key, now, write, messages=messages, units=units)
            except _Refreshed as refreshed:
                limiter.note_usage(opened_as.key, refreshed.user)
                principal = self._read_principal(connection_id)
            else:
                return RecordedFrame(principal, user)
        raise Unavailable("the connection is changing too fast", retry_after=1.0)

    def _write_frame(
        self, frame: _Frame, principal: Principal, user: Item, charge: Sequence[Clause]
    ) -> Item | None:
        """Record a frame with its charge, and add its user's item before that to `user`.

        See `WriteCharge`. Raises ConnectionGone, _Refreshed.
        """
        connection_id = frame.connection_id
        clauses = [
            add_activity(connection_id, frame.now),
            set_last_seen(frame.now),
            has_noted_principal(connection_id, principal),
            *charge,
        ]
        if not frame.refused and connection_id not in self._refused:
            clauses.append(has_no_refusals(connection_id))
        action = update_user(self._tables, principal.key, *clauses)
        try:
            user.update(self._store.update(action, ReturnValues="ALL_OLD"))
        except Cancelled as cancelled:
            return self._checked(cancelled.items[0] or {}, connection_id, principal)
        return None

    def _checked(self, user: Item, connection_id: str, principal: Principal) -> Item:
        """Return a user's item that refused a frame, unless the charge can't be the cause.

        Notes if a frame of the connection was refused. Raises ConnectionGone, _Refreshed.
        """
        if connection_id not in connection_ids(user):
            raise ended()
        if REFUSED_PREFIX + connection_id in user:
            self._refused[connection_id] = None
        noted = user.get(PRINCIPAL_PREFIX + connection_id)
        if noted is not None and noted != principal_digest(principal):
            raise _Refreshed(user)
        return user

    def _read_principal(self, connection_id: str) -> Principal:
        item = self._store.get(self._tables.connections, connection_key(connection_id))
        if item is None:
            raise ended()
        principal = Connection.from_item(item).principal
        self.note_refresh(connection_id, principal)
        return principal

    def note_refresh(self, connection_id: str, principal: Principal) -> None:
        """Remember the principal of a connection whose token was refreshed."""
        self._refreshed[connection_id] = principal

    # --- Heartbeats

    def record_heartbeat(self, connection_id: str, opened_as: Principal, now: EpochMs) -> Principal:
        """Record a heartbeat in the connection's own item, and return its present principal.

        For `opened_as` see `record_frame`.

        Raises:
            ConnectionGone: The connection is terminated.
            RateLimited: The last heartbeat was less than a minute ago. Takes no call if it came to
                this environment.
        """
        principal = self._refreshed.get(connection_id, opened_as)
        for _ in range(TRIES):
            self._require_heartbeat_due(connection_id, now)
            clauses = (
                has_principal(principal),
                *set_heartbeat(now, EpochMs(now - HEARTBEAT_MS)),
            )
            try:
                self._store.update(update_connection(self._tables, connection_id, *clauses))
            except Cancelled as cancelled:
                item = cancelled.items[0]
                if not item:
                    raise ended() from None
                principal = Connection.from_item(item).principal
                self.note_refresh(connection_id, principal)
                if "heartbeatAt" in item:
                    self._heartbeats[connection_id] = epoch_ms(item["heartbeatAt"]["N"])
            else:
                self._heartbeats[connection_id] = now
                return principal
        raise Unavailable("the connection is changing too fast", retry_after=1.0)

    def _require_heartbeat_due(self, connection_id: str, now: EpochMs) -> None:
        due = self._heartbeats.get(connection_id, LONG_AGO) + HEARTBEAT_MS
        if now < due:
            raise RateLimited(
                "a connection may send one heartbeat a minute", retry_after=(due - now) / 1000
            )

    # --- Refused frames

    def count_refusal(self, connection_id: str, user_key: str) -> int:
        """Count a refused frame; return how many were refused in a row.

        Raises ConnectionGone if the connection is terminated.
        """
        action = update_user(self._tables, user_key, add_refusal(connection_id))
        try:
            counted = self._store.update(action, ReturnValues="UPDATED_NEW")
        except Cancelled:
            raise ended() from None
        self._refused[connection_id] = None
        return int(counted[REFUSED_PREFIX + connection_id]["N"])

    def end_refusals(self, connection_id: str, user_key: str) -> None:
        """Start the count again, since a frame was accepted.

        Takes a call only if a frame was refused before: `record_frame` has noticed if that was in
        another environment.
        """
        if connection_id not in self._refused:
            return
        with suppress(Cancelled):  # it is terminated
            self._store.update(update_user(self._tables, user_key, remove_refusals(connection_id)))
        self._refused.pop(connection_id, None)


def ended() -> ConnectionGone:
    """Return the error for a frame on a terminated connection."""
    return ConnectionGone("the connection has ended: connect again")
