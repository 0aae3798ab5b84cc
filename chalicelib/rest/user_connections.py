"""A user's connections over REST: list them, close them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chalicelib.auth.principal import user_key
from chalicelib.clock import Clock
from chalicelib.runtime.deadlines import Deadline

if TYPE_CHECKING:  # they load the SDK, which this module does without
    from chalicelib.delivery.disconnect import Disconnector
    from chalicelib.store.connections import Connections
    from chalicelib.store.items import Connection
    from chalicelib.store.users import Users


class UserConnections:
    """Lists and closes users' connections. Each method raises Unavailable when storage is."""

    def __init__(
        self,
        *,
        users: "Users",
        connections: "Connections",
        disconnector: "Disconnector",
        stale_after_seconds: int,
        now: Clock,
    ) -> None:
        self._users = users
        self._connections = connections
        self._disconnector = disconnector
        self._stale_after_seconds = stale_after_seconds
        self._now = now

    def list_all(self, tenant: str | None, user_id: str) -> dict[str, object]:
        """Return the user's connections, the oldest first."""
        now = self._now()
        found = self._users.presence(tenant, user_id).connections
        return {"connections": [one.to_dict(now, self._stale_after_seconds) for one in found]}

    def close_all(self, tenant: str | None, user_id: str, deadline: Deadline) -> None:
        """Close the user's connections. `deadline`: see `Disconnector.disconnect`."""
        self._close(self._users.presence(tenant, user_id).connections, deadline)

    def close_one(
        self, tenant: str | None, user_id: str, connection_id: str, deadline: Deadline
    ) -> None:
        """Close one of the user's connections. `deadline`: see `Disconnector.disconnect`.

        Does nothing if the connection is missing or someone else's; a caller can't tell which, so
        ids can't be probed.
        """
        connection = self._connections.find(connection_id)
        if connection is not None and connection.principal.key == user_key(tenant, user_id):
            self._close([connection], deadline)

    def _close(self, connections: "Sequence[Connection]", deadline: Deadline) -> None:
        recipients = [connection.recipient for connection in connections]
        self._disconnector.disconnect(recipients, deadline)
