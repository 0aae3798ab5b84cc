"""Users: their presence, and what they are charged for."""

from collections.abc import Sequence
from typing import NamedTuple

from chalicelib.auth.principal import Principal, user_key
from chalicelib.clock import EpochMs, epoch_ms
from chalicelib.protocol.cost import Debt
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.items import Connection, connection_ids
from chalicelib.store.rate_limits import UserRateLimiter, WriteCharge
from chalicelib.store.schema import Item, user_expires_at, user_item_key


class Presence(NamedTuple):
    """A user's presence. `last_seen` is None for a user who never connected."""

    user_id: str
    last_seen: EpochMs | None
    connections: Sequence[Connection]

    def to_dict(self) -> dict[str, object]:
        """Return the presence as REST shows it."""
        return {
            "userId": self.user_id,
            "status": "online" if self.connections else "offline",
            "lastSeen": self.last_seen,
            "connections": len(self.connections),
        }


class Users:
    """The users table. Every method raises Unavailable if storage is unavailable.

    A user's status is derived from their connections, so that nothing can contradict it.
    """

    def __init__(
        self,
        store: Store,
        *,
        message_limiter: UserRateLimiter,
        read_limiter: UserRateLimiter,
    ) -> None:
        self._store = store
        self._message_limiter = message_limiter
        self._read_limiter = read_limiter

    def presence(self, tenant: str | None, user_id: str) -> Presence:
        """Return the presence of a user of `tenant`, with their oldest connection first."""
        key = user_item_key(user_key(tenant, user_id))
        user: Item = self._store.get(self._store.tables.users, key) or {}
        # DynamoDB's TTL may have deleted a connection whose id is still in the set.
        pages = self._store.batch_get(
            self._store.tables.connections, "connectionId", connection_ids(user)
        )
        connections = [
            Connection.from_item(item).with_activity(user) for page in pages for item in page
        ]
        seen = [one.timestamp for one in connections]  # their heartbeats are in their items alone
        if "lastSeen" in user:
            seen.append(epoch_ms(user["lastSeen"]["N"]))
        return Presence(
            user_id=user_id,
            last_seen=max(seen, default=None),
            connections=sorted(connections, key=lambda connection: connection.connected_at),
        )

    def check(self, principal: Principal, now: EpochMs) -> None:
        """Raise RateLimited if `charge` certainly would, before any work is done for a request."""
        self._message_limiter.check(principal.key, now)

    def charge(self, principal: Principal, now: EpochMs, messages: int, *, units: int = 1) -> None:
        """Charge a request that sends `messages` messages and costs `units`.

        Raises RateLimited and QuotaExceeded.
        """
        self._charge(self._message_limiter, principal, now, messages=messages, units=units)

    def owe(self, user_key: str, now: EpochMs, debt: Debt) -> None:
        """Charge a debt of the user with this key, which is never refused."""
        self._message_limiter.owe(user_key, now, self._writer(user_key, now, {}), debt)

    def owe_at_least(self, user_key: str, now: EpochMs, units: int) -> None:
        """Let the user with this key owe `units` from `now` on, unless they owe as much already."""
        write = self._writer(user_key, now, {})
        self._message_limiter.owe_at_least(user_key, now, write, units)

    def charge_read(self, principal: Principal, now: EpochMs) -> None:
        """Charge a request that sends nothing. Raises RateLimited."""
        self._charge(self._read_limiter, principal, now)

    def _charge(
        self,
        limiter: UserRateLimiter,
        principal: Principal,
        now: EpochMs,
        *,
        messages: int = 0,
        units: int = 1,
        return_values: str = "NONE",
    ) -> Item:
        """Charge a request, and return the attributes of the user's item that were asked for."""
        attributes: Item = {}
        write = self._writer(principal.key, now, attributes, return_values)
        limiter.charge(principal.key, now, write, messages=messages, units=units)
        return attributes

    def _writer(
        self, user_key: str, now: EpochMs, attributes: Item, return_values: str = "NONE"
    ) -> WriteCharge:
        """Return what writes a charge, and adds what DynamoDB returns to `attributes`."""
        expiry = Clause(
            set=("expiresAt = :expires",), values={":expires": number(user_expires_at(now))}
        )

        def write(charge: Sequence[Clause]) -> Item | None:
            action = update(self._store.tables.users, user_item_key(user_key), expiry, *charge)
            try:
                attributes.update(self._store.update(action, ReturnValues=return_values))
            except Cancelled as cancelled:
                return cancelled.items[0]
            return None

        return write
