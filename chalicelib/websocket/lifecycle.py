"""A connection's first and last event: who comes in, and who has left."""

import time
from collections.abc import Callable

from chalicelib.auth.access import AccessRules, choose_subprotocol
from chalicelib.auth.bearer import Verify
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.errors import BadRequest, Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.store.connections import MAX_GROUPS, Connections, LimitReached
from chalicelib.store.items import Connection
from chalicelib.websocket.event import WebSocketEvent, authenticate

EVICTIONS = 30  # of one handshake, while others take the room that it makes
MAKING_ROOM_SECONDS = 2.0


class ConnectionLifecycle:
    """Lets connections in, and sees them off."""

    def __init__(
        self,
        *,
        verify: Verify,
        rules: AccessRules,
        connections: Connections,
        outcome_recorder: OutcomeRecorder,
        disconnector: Disconnector | None,
        endpoint: str | None,
        now: Callable[[], int],
    ) -> None:
        """`disconnector` evicts the oldest connection of a user who has too many; without it, the
        new one is refused. `endpoint` overrides the event's; `now` is the clock, in epoch
        milliseconds."""
        self._verify = verify
        self._rules = rules
        self._connections = connections
        self._outcome_recorder = outcome_recorder
        self._disconnector = disconnector
        self._endpoint = endpoint
        self._now = now

    def on_connect(self, event: WebSocketEvent) -> str | None:
        """Store the connection of a `$connect` event; the subprotocol to echo, if any.

        Verifies the token itself where no authorizer ran before, so that a deployment which forgot
        to attach one is not open. Raises the errors that a handshake can be refused with.
        """
        principal = event.principal or authenticate(event, self._verify)
        self._rules.check(event.source_ip, event.headers.get("origin"))
        subprotocol = choose_subprotocol(event.subprotocols)
        connection = Connection(
            connection_id=event.connection_id,
            principal=principal,
            endpoint=self._endpoint or event.endpoint,
            connected_at=event.connected_at,
            timestamp=event.connected_at,
            groups=principal.own_groups,
        )
        if len(connection.groups) > MAX_GROUPS:
            raise BadRequest(f"the token names more than {MAX_GROUPS} groups to join")
        self._open(connection)
        return subprotocol

    def on_disconnect(self, event: WebSocketEvent) -> None:
        """Remove the connection of a `$disconnect` event, whether it comes once, twice, late, or
        before its `$connect` has ended."""
        principal = event.principal
        if principal is None:
            found = self._connections.find(event.connection_id)
            if found is None:
                return
            principal = found.principal
        self._connections.remove(event.recipient(principal), self._now(), principal.own_groups)

    def _open(self, connection: Connection) -> None:
        """Open a connection, in the room that others leave if there is none."""
        for _ in range(EVICTIONS):
            try:
                self._connections.open(connection)
                return
            except LimitReached as reached:
                self._make_room(connection, reached)
        raise Unavailable("too many connections of this user open at once", retry_after=1.0)

    def _make_room(self, connection: Connection, reached: LimitReached) -> None:
        """Evict the oldest, or remove who has left without a `$disconnect`; others may be faster
        in the room that this makes. Raises `reached` when there is none to be made."""
        deadline = time.monotonic() + MAKING_ROOM_SECONDS
        if self._disconnector is not None and reached.recipients:
            self._disconnector.evict(reached.recipients[0], deadline)
            return
        now = self._now()
        settled = [one for one in reached.recipients if not one.may_be_in_handshake(now)]
        if not settled or not self._connections.may_probe(connection.principal.key, now):
            raise reached
        outcomes = self._outcome_recorder.probe(settled, deadline)
        if not any(outcome.result in (Result.GONE, Result.REJECTED) for outcome in outcomes):
            raise reached
