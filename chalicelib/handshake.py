"""A connection's first and last event: who comes in, and who has left."""

from collections.abc import Callable

from chalicelib.access import AccessRules, choose_subprotocol
from chalicelib.auth import TokenVerifier, handshake_token
from chalicelib.connections import Connection, Connections
from chalicelib.events import WebSocketEvent
from chalicelib.principal import Principal, Scope


def authenticate(event: WebSocketEvent, verifier: TokenVerifier) -> Principal:
    """Whom a handshake's token names. Raises Unauthorized, or Forbidden without `ws:connect`."""
    token = handshake_token(event.headers, event.subprotocols, event.query)
    principal = verifier.verify(token)
    principal.require(Scope.WS_CONNECT)
    return principal


class Doorkeeper:
    """Lets connections in, and sees them off."""

    def __init__(
        self,
        verifier: TokenVerifier,
        rules: AccessRules,
        connections: Connections,
        endpoint: str | None,
        now: Callable[[], int],
    ) -> None:
        """`endpoint` overrides the event's; `now` is the clock, in epoch milliseconds."""
        self._verifier = verifier
        self._rules = rules
        self._connections = connections
        self._endpoint = endpoint
        self._now = now

    def admit(self, event: WebSocketEvent) -> str | None:
        """Store the connection of a `$connect` event; the subprotocol to echo, if any.

        Verifies the token itself where no authorizer ran before, so that a deployment which forgot
        to attach one is not open. Raises the errors that a handshake can be refused with.
        """
        principal = event.principal or authenticate(event, self._verifier)
        self._rules.check(event.source_ip, event.headers.get("origin"))
        subprotocol = choose_subprotocol(event.subprotocols)
        connection = Connection(
            connection_id=event.connection_id,
            principal=principal,
            endpoint=self._endpoint or event.endpoint,
            connected_at=event.connected_at,
        )
        self._connections.open(connection)
        return subprotocol

    def see_off(self, event: WebSocketEvent) -> None:
        """Remove the connection of a `$disconnect` event, whether it comes once, twice or late."""
        principal = event.principal or self._connections.principal(event.connection_id)
        if principal is not None:
            self._connections.close(
                event.connection_id, principal.tenant, principal.user_id, self._now()
            )
