"""Handshakes: opening a connection within its user's limit, and charging every attempt.

| handshake | calls to DynamoDB |
|---|---|
| accepted | one transaction, which contains the charge |
| the first one refused here | that transaction, cancelled, then an update with the charge |
| refused after that | the update alone |
| refused while this environment knows that the rate is used up | none |

A cancelled transaction is billed as if it had been carried out: two units for each of up to 52
actions. So after a refusal the user's next handshake here is charged first, by an update that also
returns how many connections there are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from chalicelib.clock import EpochMs, epoch_ms
from chalicelib.errors import ConnectionGone, HeraldError, RateLimited, TooManyConnections
from chalicelib.store.connection_expressions import (
    PROBE_EVERY_MS,
    add_tie,
    claim_probe,
    has_room_for,
    put_connection,
    put_membership,
    put_roster_entry,
    set_last_seen,
    set_user_expiry,
    update_user,
)
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause
from chalicelib.store.items import LONG_AGO, Connection, Recipient, connection_ids, recipients_of
from chalicelib.store.lru import LruDict
from chalicelib.store.rate_limits import UserRateLimiter
from chalicelib.store.schema import CLOSED_SLOTS, Item

CACHED_USERS = 10_000


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
        cached_users: int = CACHED_USERS,
    ) -> None:
        """Take the parts.

        Args:
            limit: The most connections that a user may have.
            limiter: Limits the attempts of a user.
            cached_users: The number of users whose refusals are remembered.
        """
        self._store = store
        self._tables = store.tables
        self._limit = limit
        self._limiter = limiter
        self._refused: LruDict[str, None] = LruDict(cached_users)

    def open(self, connection: Connection, *, charged: bool = False) -> None:
        """Store a connection, its tie to its user, and its memberships; charge the attempt.

        Opening a connection again changes nothing but the charge.

        Args:
            connection: The connection.
            charged: Whether this attempt was charged before, and made room since.

        Raises:
            LimitReached: The user has as many connections as allowed. This is exact, however many
                connect at once. The attempt is charged.
            RateLimited: The user tries to connect too often.
            ConnectionGone: Its `$disconnect` came first. The attempt is charged.
        """
        recipient = connection.recipient
        try:
            if charged:
                self._write_charged(connection)
                return  # the user may be at the limit still
            if recipient.user_key in self._refused:
                user = self.charge(recipient.user_key, connection.timestamp)
                if recipient.connection_id not in connection_ids(user):
                    self._require_room(recipient, user)
                self._write_charged(connection)
            else:
                self._write_and_charge(connection)
        except (LimitReached, RateLimited, ConnectionGone):
            self._refused[recipient.user_key] = None
            raise
        self._refused.pop(recipient.user_key, None)

    def charge(self, user_key: str, now: EpochMs) -> Item:
        """Charge an attempt that opens nothing; return the user's item. Raises RateLimited."""
        user: Item = {}

        def write(charge: Sequence[Clause]) -> Item | None:
            return self._write_charge(user_key, now, charge, user)

        self._limiter.charge(user_key, now, write)
        return user

    def may_probe(self, user_key: str, now: EpochMs, probed_at: EpochMs = LONG_AGO) -> bool:
        """Return whether the connections of a user at the limit may be probed: once a minute.

        `probed_at` is when they were last probed, as far as is known.
        """
        if now - probed_at <= PROBE_EVERY_MS:
            return False
        try:
            self._store.update(update_user(self._tables, user_key, claim_probe(now)))
        except Cancelled:
            return False
        return True

    def _write_and_charge(self, connection: Connection) -> None:
        """Open a connection together with its charge. If it is refused, charge it all the same."""
        refusals: list[HeraldError] = []
        user_key, now = connection.recipient.user_key, connection.timestamp

        def write(charge: Sequence[Clause]) -> Item | None:
            if refusals:
                return self._write_charge(user_key, now, charge, {})
            user = self._write_open(connection, charge)
            if user is not None:
                try:
                    self._require_room(connection.recipient, user)
                except HeraldError as refusal:
                    refusals.append(refusal)
            return user

        self._limiter.charge(user_key, now, write)
        if refusals:
            raise refusals[0]

    def _write_charged(self, connection: Connection) -> None:
        user = self._write_open(connection, ())
        if user is not None:
            self._require_room(connection.recipient, user)

    def _write_charge(
        self, user_key: str, now: EpochMs, charge: Sequence[Clause], user: Item
    ) -> Item | None:
        """Write a charge alone, and add the attributes of the user's item to `user`.

        See `WriteCharge`.
        """
        action = update_user(self._tables, user_key, set_user_expiry(now), *charge)
        try:
            user.update(self._store.update(action, ReturnValues="ALL_NEW"))
        except Cancelled as cancelled:
            return cancelled.items[0]
        return None

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
            put_roster_entry(self._tables, connection),
            *(put_membership(self._tables, connection, group) for group in connection.groups),
        ]
        try:
            self._store.transact(actions)
        except Cancelled as cancelled:
            stored, user = cancelled.items[:2]
            if stored:
                return None  # it is open already
            return user or {}
        return None

    def _require_room(self, recipient: Recipient, user: Mapping[str, Any]) -> None:
        """Raise ConnectionGone or LimitReached if a user's item refuses a connection."""
        tombstones = [user[slot]["SS"] for slot in CLOSED_SLOTS if slot in user]
        if any(recipient.connection_id in ids for ids in tombstones):
            raise ConnectionGone("the client has disconnected already")
        if len(connection_ids(user)) >= self._limit:
            recipients = recipients_of(user, recipient.user_id, recipient.tenant)
            probed_at = epoch_ms(user["probedAt"]["N"]) if "probedAt" in user else LONG_AGO
            raise LimitReached(self._limit, recipients, probed_at)
