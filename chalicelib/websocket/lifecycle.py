"""The start and the end of a connection: the `$connect` and `$disconnect` events."""

import logging
from contextlib import suppress

from chalicelib.auth.access import AccessRules, choose_subprotocol
from chalicelib.auth.bearer import Verify
from chalicelib.auth.principal import Principal
from chalicelib.clock import Clock
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.errors import BadRequest, Forbidden, HeraldError, Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.logs import attribute, attribute_address
from chalicelib.store.connections import MAX_GROUPS, Connections
from chalicelib.store.handshakes import Attempt, Handshakes, LimitReached
from chalicelib.store.items import Connection
from chalicelib.websocket.event import WebSocketEvent, authenticate

MAX_OPEN_TRIES = 30  # another handshake may take the room that this one makes
MAKE_ROOM_SECONDS = 3.0

logger = logging.getLogger("herald.lifecycle")


class ConnectionLifecycle:
    """Opens connections at `$connect` and removes them at `$disconnect`."""

    def __init__(
        self,
        *,
        verify: Verify,
        rules: AccessRules,
        handshakes: Handshakes,
        connections: Connections,
        outcome_recorder: OutcomeRecorder,
        disconnector: Disconnector | None,
        endpoint: str | None,
        now: Clock,
    ) -> None:
        """Take the parts.

        Args:
            disconnector: Evicts the oldest connection of a user who has as many as allowed;
                None refuses the new connection instead.
            endpoint: Overrides the endpoint of the event.
        """
        self._verify = verify
        self._rules = rules
        self._handshakes = handshakes
        self._connections = connections
        self._outcome_recorder = outcome_recorder
        self._disconnector = disconnector
        self._endpoint = endpoint
        self._now = now

    def on_connect(self, event: WebSocketEvent) -> str | None:
        """Store the connection of a `$connect` event; return the subprotocol to echo, if any.

        Verifies the token if no authorizer did, so that a deployment without one is not open to
        everybody.

        Raises:
            Unauthorized, Forbidden: For the token, the address or the origin.
            BadRequest: For the subprotocols, or a token that names too many groups.
            LimitReached: If the user has too many connections.
            RateLimited: If the user tries too often. Every attempt counts, also a refused one.
            ConnectionGone: If the client has left already.
            Unavailable: If storage or the keys can't be reached.
        """
        attribute_address(event.source_ip)
        principal = event.principal or authenticate(event, self._verify)
        attribute(principal.tenant, principal.user_id)
        try:
            subprotocol = self._check(event, principal)
        except (BadRequest, Forbidden):
            with suppress(Unavailable):  # the refusal is certain, whatever storage says
                self._handshakes.charge(principal.key, event.connected_at)
            raise
        connection = Connection(
            connection_id=event.connection_id,
            principal=principal,
            endpoint=self._endpoint or event.endpoint,
            connected_at=event.connected_at,
            timestamp=event.connected_at,
            groups=principal.own_groups,
        )
        self._open(connection)
        return subprotocol

    def _check(self, event: WebSocketEvent, principal: Principal) -> str | None:
        """Return the subprotocol to echo. Raises Forbidden, BadRequest."""
        self._rules.check(event.source_ip, event.headers.get("origin"))
        subprotocol = choose_subprotocol(event.subprotocols)
        if len(principal.own_groups) > MAX_GROUPS:
            raise BadRequest(f"the token names more than {MAX_GROUPS} groups to join")
        return subprotocol

    def on_disconnect(self, event: WebSocketEvent) -> None:
        """Remove the connection of a `$disconnect` event. Raises Unavailable.

        The event may come late, twice, or before its `$connect` has ended.
        """
        principal = event.principal
        if principal is None:
            connection = self._connections.find(event.connection_id)
            if connection is None:
                return
            principal = connection.principal
        attribute(principal.tenant, principal.user_id)
        self._connections.remove(event.recipient(principal), self._now(), principal.own_groups)

    def _open(self, connection: Connection) -> None:
        """Open a connection; if the user has too many, make room for it first."""
        attempt = self._handshakes.attempt(connection)
        try:
            for _ in range(MAX_OPEN_TRIES):
                try:
                    attempt.open()
                except LimitReached as reached:
                    self._make_room(connection, reached)
                else:
                    return
            raise Unavailable("the user opens too many connections at once", retry_after=1.0)
        except HeraldError:
            self._take_back(attempt, connection.connection_id)
            raise

    def _take_back(self, attempt: Attempt, connection_id: str) -> None:
        """Remove what a refused handshake has stored.

        API Gateway sends no `$disconnect` for it.
        """
        try:
            attempt.take_back(self._now())
        except Unavailable as error:
            logger.warning(
                "the sweep has to remove what a refused handshake may have stored: %s",
                error.detail,
                extra={"connectionId": connection_id},
            )

    def _make_room(self, connection: Connection, reached: LimitReached) -> None:
        """Evict the user's oldest connection, or else remove those that turn out to be dead.

        Raises `reached` if neither makes room.
        """
        deadline = Deadline.after(MAKE_ROOM_SECONDS)
        if self._disconnector is not None and reached.recipients:
            self._disconnector.evict(reached.recipients[0], deadline)
            return
        now = self._now()
        opened = [one for one in reached.recipients if not one.may_be_in_handshake(now)]
        user_key = connection.principal.key
        if not opened or not self._handshakes.may_probe(user_key, now, reached.probed_at):
            raise reached
        outcomes = self._outcome_recorder.probe(opened, deadline)
        if not any(outcome.result in (Result.GONE, Result.REJECTED) for outcome in outcomes):
            raise reached
