"""What a client may ask over its WebSocket, and the frame that answers it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chalicelib.auth.bearer import Verify
from chalicelib.auth.principal import Principal, Scope
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Delivery
from chalicelib.errors import (
    ANSWERS,
    BadRequest,
    ConnectionGone,
    Forbidden,
    HeraldError,
    TokenExpired,
)
from chalicelib.messaging.dispatch import Dispatcher
from chalicelib.messaging.resume import Resumer
from chalicelib.protocol.messages import Message, accept, parse_message, parse_name, parse_text
from chalicelib.protocol.strict_json import encode, parse_json
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.connections import Connections
from chalicelib.store.items import Connection, Recipient
from chalicelib.websocket.event import WebSocketEvent

AnswerFrame = dict[str, object]

ANSWER_SECONDS = 1.0  # for the answer itself, when what it answers took all the time

logger = logging.getLogger("herald.actions")


@dataclass(slots=True)
class Request:
    """What a frame asks. Reading it goes as far as it can: `error` says what is wrong with it."""

    recipient: Recipient
    principal: Principal
    deadline: float
    action: str = ""
    ref: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    message: Message | None = None
    error: HeraldError | None = None


class Actions:
    """Answers the frames of connected clients; a wrong one gets an error frame, never a crash."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        delivery: Delivery,
        connections: Connections,
        disconnector: Disconnector,
        resumer: Resumer,
        verify: Verify,
        now: Callable[[], int],
        may_encrypt: bool,
        metrics: Metrics,
    ) -> None:
        """`now` is the clock, in epoch milliseconds; `may_encrypt`: see `parse_messages`."""
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._connections = connections
        self._disconnector = disconnector
        self._resumer = resumer
        self._verify = verify
        self._now = now
        self._may_encrypt = may_encrypt
        self._metrics = metrics
        self._actions: dict[str, Callable[[Request], AnswerFrame]] = {
            "ping": self._ping,
            "send": self._send,
            "join": self._join,
            "leave": self._leave,
            "resume": self._resume,
            "refresh": self._refresh,
        }

    def receive(self, event: WebSocketEvent, deadline: float) -> None:
        """Do what a MESSAGE event asks, and send its answer. `deadline`: see `Delivery.deliver`.

        A client that may stay no longer is told so, and its connection ends.
        """
        recipient = Recipient(event.connection_id, "", None, event.endpoint)
        ref, ending = None, None
        try:
            principal = event.principal or self._stored_principal(event)
            recipient = event.recipient(principal)
            request = self._read(event, recipient, principal, deadline)
            ref = request.ref
            frame = self._answer(request)
        except HeraldError as error:
            frame = error_frame(error)
            if isinstance(error, TokenExpired):
                ending = self._disconnector.disconnect
            elif isinstance(error, ConnectionGone):
                ending = self._disconnector.close_sockets
        except Exception:
            logger.exception(
                "a message handler failed", extra={"connectionId": event.connection_id}
            )
            frame = error_frame(HeraldError("something went wrong here; it has been logged"))
        body = encode(frame if ref is None else {**frame, "ref": ref})
        deadline += ANSWER_SECONDS
        if ending is None:
            self._delivery.post(event.connection_id, event.endpoint, body, deadline)
        else:
            ending([recipient], deadline, frame_of(body))

    def _stored_principal(self, event: WebSocketEvent) -> Principal:
        """Whose connection it is where no authorizer ran at its start."""
        connection = self._connections.find(event.connection_id)
        if connection is None:
            raise ConnectionGone("the connection has ended: connect again")
        return connection.principal

    def _read(
        self, event: WebSocketEvent, recipient: Recipient, principal: Principal, deadline: float
    ) -> Request:
        request = Request(recipient, principal, deadline)
        try:
            fields = parse_json(event.body)
            if not isinstance(fields, dict):
                raise BadRequest("a frame must be a JSON object")
            ref = fields.pop("ref", None)
            if ref is not None and not isinstance(ref, str):
                raise BadRequest("ref must be a string")
            request.ref, request.fields = ref and parse_text("ref", ref), fields
            action = fields.pop("action", None)
            if not isinstance(action, str) or action not in self._actions:
                raise BadRequest(f"action must be one of {', '.join(self._actions)}")
            request.action = action
            if action == "send":
                draft = parse_message(fields, may_encrypt=self._may_encrypt)
                stamp = Stamp.fresh(self._now())
                [request.message] = accept([draft], sender=principal.user_id, stamp=stamp)
        except BadRequest as error:
            request.error = error
        return request

    def _answer(self, request: Request) -> AnswerFrame:
        try:
            return self._do(request)
        except HeraldError as error:
            if request.action == "send":
                self._metrics.count("MessagesRejected", Reason=error.code)
            raise

    def _do(self, request: Request) -> AnswerFrame:
        """Whatever a frame holds, its client has been heard, and pays for it."""
        now = self._now()
        request.principal = self._connections.record_activity(
            request.recipient.connection_id,
            request.principal,
            now,
            0 if request.message is None else 1,
        )
        if request.action != "refresh":  # which brings a token of its own
            request.principal.require_unexpired(now / 1000)
        if request.error is not None:
            raise request.error
        return self._actions[request.action](request)

    def _ping(self, request: Request) -> AnswerFrame:
        _only(request)
        return {"type": "pong", "timestamp": self._now()}

    def _send(self, request: Request) -> AnswerFrame:
        assert request.message is not None  # noqa: S101 - it was read without an error
        [sent] = self._dispatcher.send([request.message], request.principal, request.deadline)
        return {"type": "ack", **sent.to_dict()}

    def _join(self, request: Request) -> AnswerFrame:
        group = _group(request)
        if not request.principal.may_join(group):
            raise Forbidden("the token's groups do not allow this group")
        self._connections.join(self._connection(request), group, self._now())
        return {"type": "joined", "group": group}

    def _leave(self, request: Request) -> AnswerFrame:
        group = _group(request)
        self._connections.leave(self._connection(request), group, self._now())
        return {"type": "left", "group": group}

    def _resume(self, request: Request) -> AnswerFrame:
        _only(request, "after")
        after = request.fields.get("after")
        if not isinstance(after, str):
            raise BadRequest("after must be a string")
        resumed = self._resumer.resume(
            request.principal, request.recipient, after, self._now(), request.deadline
        )
        return {"type": "resumed", "count": resumed.count, "complete": resumed.complete}

    def _refresh(self, request: Request) -> AnswerFrame:
        _only(request, "token")
        token = request.fields.get("token")
        if not isinstance(token, str):
            raise BadRequest("token must be a string")
        principal = self._verify(token)
        principal.require(Scope.WS_CONNECT)
        if principal.key != request.principal.key:
            raise Forbidden("the token is another user's")
        self._connections.refresh(self._connection(request), principal, self._now())
        return {"type": "refreshed", "expiresAt": principal.expires_at * 1000}

    def _connection(self, request: Request) -> Connection:
        connection = self._connections.find(request.recipient.connection_id)
        if connection is None:
            raise ConnectionGone("the connection has ended: connect again")
        return connection


def _only(request: Request, *known: str) -> None:
    for name in request.fields:
        if name not in known:
            raise BadRequest(f"{name} is not a known field of {request.action}")


def _group(request: Request) -> str:
    _only(request, "group")
    return parse_name("group", request.fields.get("group"))


def error_frame(error: HeraldError) -> AnswerFrame:
    """The error frame that tells a client of `error`."""
    frame: AnswerFrame = {
        "type": "error",
        "code": ANSWERS[error.code].frame_code,
        "message": error.detail,
    }
    if error.retry_after is not None:
        frame["retryAfterMs"] = max(1, round(error.retry_after * 1000))
    return frame
