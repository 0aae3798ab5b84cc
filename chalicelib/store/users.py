"""Users: who is online, with which connections, and what each may still send."""

from collections.abc import Sequence
from dataclasses import dataclass

from chalicelib.auth.principal import Principal, user_key
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.items import USER_SECONDS, Connection, Item, connection_ids
from chalicelib.store.rate_limits import Meter


@dataclass(frozen=True, slots=True)
class Presence:
    """A user's presence. `last_seen` is in epoch milliseconds, None for one never connected."""

    user_id: str
    last_seen: int | None
    connections: Sequence[Connection]

    def to_dict(self) -> dict[str, object]:
        return {
            "userId": self.user_id,
            "status": "online" if self.connections else "offline",
            "lastSeen": self.last_seen,
            "connections": len(self.connections),
        }


class Users:
    """What the users table says. Each method raises Unavailable when storage is.

    The status follows from the connections that there are, so nothing can contradict it.
    """

    def __init__(self, store: Store, *, messages: Meter, resumes: Meter) -> None:
        """`messages` charges users for what they send, `resumes` for coming back."""
        self._store = store
        self._messages = messages
        self._resumes = resumes

    def presence(self, tenant: str | None, user_id: str) -> Presence:
        """The presence of a user of `tenant`, their connections with the oldest first."""
        found = self._store.get(
            self._store.tables.users,
            {"user": {"S": user_key(tenant, user_id)}},
            ProjectionExpression="connections, lastSeen",
        )
        user: Item = found or {}
        # DynamoDB's TTL may have taken a connection whose id is still in the set.
        pages = self._store.batch_get(
            self._store.tables.connections, "connectionId", connection_ids(user)
        )
        connections = [Connection.from_item(item) for page in pages for item in page]
        return Presence(
            user_id=user_id,
            last_seen=int(user["lastSeen"]["N"]) if "lastSeen" in user else None,
            connections=sorted(connections, key=lambda connection: connection.connected_at),
        )

    def check(self, principal: Principal, now: int) -> None:
        """Raise RateLimited where `charge` certainly will, before anything is done for a request.
        `now` is in epoch milliseconds."""
        self._messages.check(principal.key, now)

    def charge(self, principal: Principal, now: int, messages: int) -> None:
        """Charge a request that sends so many messages. `now` is in epoch milliseconds.

        Raises RateLimited, QuotaExceeded.
        """
        self._charge(self._messages, principal, now, messages)

    def charge_resume(self, principal: Principal, now: int) -> list[str]:
        """Charge a resume; the ids of the user's connections. Raises RateLimited."""
        user = self._charge(self._resumes, principal, now, ReturnValues="ALL_NEW")
        return connection_ids(user)

    def _charge(
        self, meter: Meter, principal: Principal, now: int, messages: int = 0, **parameters: str
    ) -> Item:
        """Charge by a meter; the attributes of the user's item that the parameters ask for."""
        kept = Clause(
            set=("expiresAt = :expires",),
            values={":expires": number(now // 1000 + USER_SECONDS)},
        )
        attributes: Item = {}

        def write(charge: Sequence[Clause]) -> Item | None:
            action = update(self._store.tables.users, {"user": {"S": principal.key}}, kept, *charge)
            try:
                attributes.update(self._store.update(action, **parameters))
            except Cancelled as cancelled:
                return cancelled.items[0]
            return None

        meter.charge(principal.key, now, write, messages)
        return attributes
