"""Handshakes: opening a connection within its user's limit, and charging every attempt.

| step | writes |
|---|---|
| the connection is stored, on condition that it is not | the connection's item |
| so are its roster entry and its memberships | a batch |
| it is tied to its user, if there is room, and no tombstone; this is charged | the user's item |

A connection counts once it is tied. Until then nothing is lost if the function dies: what it has
stored is found by the sweep, as a connection whose `$disconnect` never came. If the last step
refuses, what the others stored is taken back.

| handshake | calls to DynamoDB |
|---|---|
| accepted | three |
| the first one refused here | those, an update with the charge, and three that take it back |
| refused after that | the update alone, which also returns how many connections there are |
| refused while this environment knows that the rate is used up | none |
"""

from collections.abc import Mapping, Sequence
from typing import Any

from chalicelib.clock import Clock, EpochMs, epoch_ms, now_ms
from chalicelib.errors import (
    ConnectionGone,
    HeraldError,
    RateLimited,
    TooManyConnections,
    Unavailable,
)
from chalicelib.store.connection_expressions import (
    PROBE_EVERY_MS,
    add_tie,
    add_tombstone,
    claim_probe,
    count_change,
    delete_membership,
    delete_roster_entry,
    delete_stored,
    has_groups,
    has_principal,
    has_room_for,
    put_connection,
    put_membership,
    put_roster_entry,
    remove_tie,
    set_last_seen,
    set_user_expiry,
    update_connection,
    update_user,
)
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Action, Clause
from chalicelib.store.items import LONG_AGO, Connection, Recipient, connection_ids, recipients_of
from chalicelib.store.lru import LruDict
from chalicelib.store.rate_limits import UserRateLimiter
from chalicelib.store.schema import CLOSED_SLOTS, Item

CACHED_USERS = 10_000
TRIES = 5  # while others change the connection


class LimitReached(TooManyConnections):
    """The user has as many connections as allowed.

    `recipients` has them, the oldest first. `probed_at` is when they were last probed.
    """

    def __init__(
        self, limit: int, recipients: list[Recipient], probed_at: EpochMs = LONG_AGO
    ) -> None:
        super().__init__(f"the limit of {limit} connections per user is reached")
        self.recipients = recipients
        self.probed_at = probed_at


class Handshakes:
    """Opens connections. Every method raises Unavailable if storage is unavailable."""

    def __init__(
        self,
        store: Store,
        *,
        limit: int,
        limiter: UserRateLimiter,
        now: Clock = now_ms,
        cached_users: int = CACHED_USERS,
    ) -> None:
        """Take the parts.

        Args:
            limit: The most connections that a user may have.
            limiter: Limits the attempts of a user.
            now: Says when a handshake has taken too long.
            cached_users: The number of users whose refusals are remembered.
        """
        self.store = store
        self.limiter = limiter
        self.limit = limit
        self.now = now
        self._refused: LruDict[str, None] = LruDict(cached_users)

    def attempt(self, connection: Connection) -> "Attempt":
        """Begin a handshake, which stores nothing yet."""
        return Attempt(self, connection)

    def open(self, connection: Connection) -> None:
        """Open a connection, or take it back. Raises what `Attempt.open` does."""
        attempt = self.attempt(connection)
        try:
            attempt.open()
        except HeraldError:
            attempt.take_back(connection.timestamp)
            raise

    def charge(self, user_key: str, now: EpochMs) -> Item:
        """Charge an attempt that opens nothing; return the user's item. Raises RateLimited."""
        user: Item = {}

        def write(charge: Sequence[Clause]) -> Item | None:
            return self.write_charge(user_key, now, charge, user)

        self.limiter.charge(user_key, now, write)
        return user

    def write_charge(
        self, user_key: str, now: EpochMs, charge: Sequence[Clause], user: Item
    ) -> Item | None:
        """Write a charge alone, and add the attributes of the user's item to `user`.

        See `WriteCharge`.
        """
        action = update_user(self.store.tables, user_key, set_user_expiry(now), *charge)
        try:
            user.update(self.store.update(action, ReturnValues="ALL_NEW"))
        except Cancelled as cancelled:
            return cancelled.items[0]
        return None

    def may_probe(self, user_key: str, now: EpochMs, probed_at: EpochMs = LONG_AGO) -> bool:
        """Return whether the connections of a user at the limit may be probed: once a minute.

        `probed_at` is when they were last probed, as far as is known.
        """
        if now - probed_at <= PROBE_EVERY_MS:
            return False
        try:
            self.store.update(update_user(self.store.tables, user_key, claim_probe(now)))
        except Cancelled:
            return False
        return True

    # --- Users whose last attempt here was refused

    def was_refused(self, user_key: str) -> bool:
        """Return whether the user's last attempt in this environment was refused."""
        return user_key in self._refused

    def remember(self, user_key: str, *, refused: bool) -> None:
        """Remember how a user's attempt ended."""
        if refused:
            self._refused[user_key] = None
        else:
            self._refused.pop(user_key, None)


class Attempt:
    """The handshake of one connection."""

    def __init__(self, handshakes: Handshakes, connection: Connection) -> None:
        self._handshakes = handshakes
        self._store = handshakes.store
        self._tables = handshakes.store.tables
        self._connection = connection
        self._recipient = connection.recipient
        self._charged = False
        self._stored = False  # whether this attempt may have stored something
        self._complete = False  # whether it has stored everything
        self._found: Connection | None = None  # what an earlier attempt has stored

    def open(self) -> None:
        """Store the connection, its roster entry, its memberships, and its tie to its user; charge
        the attempt, once however often this is called.

        Opening a connection again changes nothing but the charge.

        Raises:
            LimitReached: The user has as many connections as allowed. This is exact, however many
                connect at once. The attempt is charged, and can be repeated.
            RateLimited: The user tries to connect too often.
            ConnectionGone: Its `$disconnect` came first. The attempt is charged.
        """
        handshakes, user_key = self._handshakes, self._recipient.user_key
        try:
            if not self._charged and handshakes.was_refused(user_key):
                user = handshakes.charge(user_key, self._connection.timestamp)
                self._charged = True
                self._refuse_by(user)
            if self._charged:
                refusing = self._write_tie(())
                if refusing is not None:
                    self._refuse_by(refusing)
            else:
                self._tie_and_charge()
        except (LimitReached, RateLimited, ConnectionGone):
            handshakes.remember(user_key, refused=True)
            raise
        handshakes.remember(user_key, refused=False)

    def take_back(self, now: EpochMs) -> None:
        """Remove what a failed `open` may have stored, or may still store.

        Its tombstone keeps a tie that is still under way from being written. Another item that is
        written so late is found by the sweep, or expires.
        """
        if not self._stored:
            return
        recipient = self._recipient
        clauses = (remove_tie(recipient), *add_tombstone(recipient, now), set_user_expiry(now))
        self._store.update(update_user(self._tables, recipient.user_key, *clauses))
        groups = self._connection.groups
        self._store.batch_write(
            [
                delete_roster_entry(self._tables, recipient),
                *(delete_membership(self._tables, recipient, group) for group in groups),
            ]
        )
        self._store.delete(delete_stored(self._tables, recipient))

    def _tie_and_charge(self) -> None:
        """Open the connection, and charge it together with the tie. If the connection is refused,
        charge it all the same."""
        refusals: list[HeraldError] = []
        user_key, now = self._recipient.user_key, self._connection.timestamp

        def write(charge: Sequence[Clause]) -> Item | None:
            if refusals:
                return self._handshakes.write_charge(user_key, now, charge, {})
            user = self._write_tie(charge)
            if user is not None:
                try:
                    self._refuse_by(user)
                except HeraldError as refusal:
                    refusals.append(refusal)
            return user

        self._handshakes.limiter.charge(user_key, now, write)
        self._charged = True
        if refusals:
            raise refusals[0]

    def _write_tie(self, charge: Sequence[Clause]) -> Item | None:
        """Store the connection, unless that is done, and tie it. See `WriteCharge`."""
        if not self._complete:
            self._write_items()
        if not self._recipient.may_be_in_handshake(self._handshakes.now()):
            # API Gateway waits no longer, and the sweep may have removed what is stored.
            raise Unavailable("the handshake took too long")
        if self._found is not None:
            return self._write_again(charge)
        try:
            self._store.update(self._tie(self._connection, charge))
        except Cancelled as cancelled:
            return self._unless_tied(cancelled.items[0])
        return None

    def _write_items(self) -> None:
        """Store the connection, then its roster entry and memberships; or find it stored."""
        connection = self._connection
        try:
            self._stored = True
            self._store.create(put_connection(self._tables, connection))
        except Cancelled as cancelled:
            # `$connect` came twice. Only the earlier event may take back what it has stored.
            self._stored = False
            self._found = Connection.from_item(cancelled.items[0] or {})
        else:
            self._store.batch_write(self._entries(connection))
        self._complete = True

    def _write_again(self, charge: Sequence[Clause]) -> Item | None:
        """Tie a connection that is stored already. See `WriteCharge`.

        Its client may have joined groups or refreshed its token since. This is one transaction, so
        that it writes what the connection's item says.
        """
        for _ in range(TRIES):
            assert self._found is not None  # noqa: S101 - the caller has seen to it
            found = self._found
            as_found = (has_groups(found.groups), has_principal(found.principal), count_change())
            actions = [
                update_connection(self._tables, found.connection_id, *as_found),
                self._tie(found, charge),
                *self._entries(found),
            ]
            try:
                self._store.transact(actions)
            except Cancelled as cancelled:
                stored, user = cancelled.items[:2]
                if stored is None:
                    return self._unless_tied(user)
                if not stored:
                    raise ConnectionGone("the client has disconnected already") from None
                self._found = Connection.from_item(stored)
            else:
                return None
        raise Unavailable("the connection is changing too fast", retry_after=1.0)

    def _tie(self, connection: Connection, charge: Sequence[Clause]) -> Action:
        clauses = (
            add_tie(connection),
            set_last_seen(self._connection.timestamp),
            has_room_for(connection.connection_id, self._handshakes.limit),
            *charge,
        )
        return update_user(self._tables, self._recipient.user_key, *clauses)

    def _entries(self, connection: Connection) -> list[Action]:
        return [
            put_roster_entry(self._tables, connection),
            *(put_membership(self._tables, connection, group) for group in connection.groups),
        ]

    def _unless_tied(self, user: Item | None) -> Item | None:
        """Return the user's item that refused a tie; None if the tie was written before."""
        user = user or {}
        tied = self._recipient.connection_id in connection_ids(user)
        return None if tied and not self._has_tombstone(user) else user

    def _has_tombstone(self, user: Mapping[str, Any]) -> bool:
        return any(
            self._recipient.connection_id in user[slot]["SS"]
            for slot in CLOSED_SLOTS
            if slot in user
        )

    def _refuse_by(self, user: Mapping[str, Any]) -> None:
        """Raise ConnectionGone or LimitReached if a user's item refuses the connection."""
        recipient, limit = self._recipient, self._handshakes.limit
        if self._has_tombstone(user):
            raise ConnectionGone("the client has disconnected already")
        ids = connection_ids(user)
        if recipient.connection_id not in ids and len(ids) >= limit:
            recipients = recipients_of(user, recipient.user_id, recipient.tenant)
            probed_at = epoch_ms(user["probedAt"]["N"]) if "probedAt" in user else LONG_AGO
            raise LimitReached(limit, recipients, probed_at)
