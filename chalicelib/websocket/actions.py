"""The actions that a client may ask for over its WebSocket, and their answers."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from chalicelib.auth.bearer import Verify
from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import Clock, EpochMs
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Delivery
from chalicelib.errors import (
    ANSWERS,
    BadRequest,
    ConnectionGone,
    Forbidden,
    HeraldError,
    InternalError,
    TokenExpired,
    Unavailable,
)
from chalicelib.messaging.dispatch import Dispatcher
from chalicelib.messaging.resume import Resumer, parse_after
from chalicelib.protocol import server_frames
from chalicelib.protocol.messages import (
    Draft,
    Message,
    accept,
    parse_message,
    parse_name,
    parse_text,
)
from chalicelib.protocol.server_frames import ServerFrame
from chalicelib.protocol.strict_json import encode, parse_json
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.logs import RefusalLog, attribute
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.activity import ActivityRecorder
from chalicelib.store.connections import Connections
from chalicelib.store.items import Connection, Recipient
from chalicelib.store.lru import LruDict
from chalicelib.store.rate_limits import UserRateLimiter
from chalicelib.store.schema import Item
from chalicelib.websocket.event import WebSocketEvent

MAX_REFUSED_FRAMES = 100  # in a row
FOUND_PRINCIPALS = 10_000  # the connections whose principals are remembered
ANSWER_SECONDS = 1.0  # extra time to send the answer, in case the action used up its deadline

logger = logging.getLogger("herald.actions")
refusals = RefusalLog(logger)


@dataclass(slots=True)
class Request:
    """A frame from a client. Reading fills in the fields in order, as far as they are valid.

    `deadline` is for the action. `user` is the user's item, as it was before the frame.
    """

    recipient: Recipient
    deadline: Deadline
    _: KW_ONLY
    principal: Principal = field(init=False)
    ref: str | None = None
    action: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    draft: Draft | None = None
    message: Message | None = None
    units: int = 1
    after: str | None = None
    user: Item = field(default_factory=dict)


class Actions:
    """Carries out the frames of connected clients, and answers each, if only with an error."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        delivery: Delivery,
        connections: Connections,
        activity: ActivityRecorder,
        disconnector: Disconnector,
        resumer: Resumer,
        resume_limiter: UserRateLimiter,
        verify: Verify,
        now: Clock,
        may_encrypt: bool,
        metrics: Metrics,
    ) -> None:
        """Take the parts that the actions use.

        Args:
            may_encrypt: Whether there is a key for messages that ask for encryption.
        """
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._connections = connections
        self._activity = activity
        self._disconnector = disconnector
        self._resumer = resumer
        self._resume_limiter = resume_limiter
        self._verify = verify
        self._now = now
        self._may_encrypt = may_encrypt
        self._metrics = metrics
        self._found: LruDict[str, Principal] = LruDict(FOUND_PRINCIPALS)
        self._actions: dict[str, Callable[[Request], ServerFrame]] = {
            "ping": self._ping,
            "heartbeat": self._heartbeat,
            "send": self._send,
            "join": self._join,
            "leave": self._leave,
            "resume": self._resume,
            "refresh": self._refresh,
        }

    def receive(self, event: WebSocketEvent, deadline: Deadline) -> None:
        """Carry out the frame of a MESSAGE event, and send the answer.

        Closes the connection after the answer if its token has expired, it was removed, or too many
        of its frames in a row were refused.
        `deadline`: see `Delivery.deliver`. Raises Unavailable if such a connection could not be
        removed.
        """
        request = Request(Recipient(event.connection_id, "", None, event.endpoint), deadline)
        try:
            answer = self._carry_out(request, event)
        except HeraldError as error:
            if request.action == "send":
                self._metrics.count("MessagesRejected", Reason=error.code)
            self._refuse(request, error)
        except Exception:
            logger.exception(
                "a message handler failed", extra={"connectionId": event.connection_id}
            )
            self._refuse(request, InternalError())
        else:
            if request.action != "ping":
                with suppress(Unavailable):  # the next accepted frame will try again
                    self._activity.end_refusals(event.connection_id, request.principal.key)
            self._delivery.post(
                event.connection_id,
                event.endpoint,
                _answer_body(request, answer),
                deadline.later(ANSWER_SECONDS),
            )

    # --- Read, identify, charge, act

    def _carry_out(self, request: Request, event: WebSocketEvent) -> ServerFrame:
        """Carry out a frame; return the answer.

        A frame is charged even if it can't be read. A ping is answered without a look at the
        tables, as API Gateway answers it where it has the route.
        """
        try:
            self._read(request, event.body)
        except Exception:
            self._identify(request, event)
            self._charge(request, refused=True)
            raise
        if request.action != "ping":
            self._identify(request, event)
            self._charge(request)
        return self._actions[request.action](request)

    def _identify(self, request: Request, event: WebSocketEvent) -> None:
        """Fill in whose connection it is: from the authorizer, or else from the table, once.

        Raises ConnectionGone, Unavailable.
        """
        principal = event.principal or self._found.get(event.connection_id)
        if principal is None:
            principal = self._find(event.connection_id).principal
            self._found[event.connection_id] = principal
        request.principal = principal
        request.recipient = event.recipient(request.principal)
        attribute(request.principal.tenant, request.principal.user_id, event.source_ip)

    def _read(self, request: Request, body: str) -> None:
        """Fill in what the frame asks for. Raises BadRequest."""
        fields = parse_json(body)
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
            request.draft = parse_message(fields, may_encrypt=self._may_encrypt)
        elif action == "resume":
            request.after = parse_after(_only_string(request, "after"))
        elif action in ("ping", "heartbeat"):
            _allow_only(request)

    def _charge(self, request: Request, *, refused: bool = False) -> None:
        """Record the client's activity, and charge the user for the frame, which may be `refused`.

        Raises ConnectionGone, RateLimited, QuotaExceeded, TokenExpired, Unavailable.
        """
        now = self._now()
        connection_id = request.recipient.connection_id
        if request.draft is not None and not refused:
            sender = request.principal.user_id
            [request.message] = accept([request.draft], sender=sender, stamp=Stamp.fresh(now))
            request.units = self._dispatcher.units([request.message])
        if request.action == "heartbeat" and not refused:
            request.principal = self._activity.record_heartbeat(
                connection_id, request.principal, now
            )
        else:
            request.principal, request.user = self._activity.record_frame(
                connection_id,
                request.principal,
                now,
                messages=0 if request.message is None else 1,
                units=request.units,
                refused=refused,
                limiter=None if request.after is None else self._resume_limiter,
            )
        if request.action != "refresh":  # it brings a new token
            request.principal.require_unexpired(now / 1000)

    def _refuse(self, request: Request, error: HeraldError) -> None:
        """Send the error; then close the connection if it may not stay open."""
        recipient, deadline = request.recipient, request.deadline.later(ANSWER_SECONDS)
        try:
            disconnects = isinstance(error, TokenExpired) or self._count_refusal(request, error)
        except ConnectionGone as gone:
            error, disconnects = gone, False
        refusals.add("frame", error, connectionId=recipient.connection_id)
        body = _answer_body(request, server_frames.error(error))
        if disconnects:
            self._disconnector.disconnect([recipient], deadline, frame_of(body))
        elif isinstance(error, ConnectionGone):
            self._disconnector.close_sockets([recipient], deadline, frame_of(body))
        else:
            self._delivery.post(recipient.connection_id, recipient.endpoint, body, deadline)

    def _count_refusal(self, request: Request, error: HeraldError) -> bool:
        """Count a refused frame, and return whether it is one too many in a row.

        Counts the client's errors alone, not Herald's own. Raises ConnectionGone.
        """
        if isinstance(error, ConnectionGone) or ANSWERS[error.code].status >= 500:
            return False
        recipient = request.recipient
        try:
            refused = self._activity.count_refusal(recipient.connection_id, recipient.user_key)
        except Unavailable:
            return False
        if refused < MAX_REFUSED_FRAMES:
            return False
        logger.warning(
            "%d frames in a row were refused: closing the connection",
            refused,
            extra={
                "connectionId": recipient.connection_id,
                "tenant": recipient.tenant,
                "userId": recipient.user_id,
            },
        )
        return True

    # --- The actions

    def _ping(self, request: Request) -> ServerFrame:
        return server_frames.pong(self._now())

    def _heartbeat(self, request: Request) -> ServerFrame:
        return server_frames.heartbeat(self._now())

    def _send(self, request: Request) -> ServerFrame:
        assert request.message is not None  # noqa: S101 - reading a `send` fills it in
        [sent] = self._dispatcher.send(
            [request.message], request.principal, request.deadline, paid=request.units
        )
        return server_frames.ack(sent)

    def _join(self, request: Request) -> ServerFrame:
        group = _group(request)
        if not request.principal.may_join(group):
            raise Forbidden("the token's groups do not allow this group")
        self._connections.join(self._connection(request), group, self._now())
        return server_frames.joined(group)

    def _leave(self, request: Request) -> ServerFrame:
        group = _group(request)
        self._connections.leave(self._connection(request), group, self._now())
        return server_frames.left(group)

    def _resume(self, request: Request) -> ServerFrame:
        assert request.after is not None  # noqa: S101 - reading a `resume` fills it in
        resumed = self._resumer.resume(
            request.principal,
            request.recipient,
            request.after,
            user=request.user,
            now=self._now(),
            deadline=request.deadline,
        )
        return server_frames.resumed(count=resumed.count, complete=resumed.complete)

    def _refresh(self, request: Request) -> ServerFrame:
        principal = self._verify(_only_string(request, "token"))
        principal.require(Scope.WS_CONNECT)
        if principal.key != request.principal.key:
            raise Forbidden("the token belongs to another user")
        connection = self._connection(request)
        if principal != connection.principal:  # else up to 52 writes would change nothing
            self._connections.refresh(connection, principal, self._now())
        return server_frames.refreshed(EpochMs(principal.expires_at * 1000))

    def _connection(self, request: Request) -> Connection:
        return self._find(request.recipient.connection_id)

    def _find(self, connection_id: str) -> Connection:
        connection = self._connections.find(connection_id)
        if connection is None:
            raise ConnectionGone("the connection has ended: connect again")
        return connection


def _answer_body(request: Request, frame: ServerFrame) -> bytes:
    return encode(server_frames.with_ref(frame, request.ref))


def _allow_only(request: Request, *known: str) -> None:
    """Raise BadRequest for a field that the action does not know."""
    for name in request.fields:
        if name not in known:
            raise BadRequest(f"{name} is not a known field of {request.action}")


def _only_string(request: Request, name: str) -> str:
    """Return the only field of the action, a string. Raises BadRequest."""
    _allow_only(request, name)
    value = request.fields.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a string")
    return value


def _group(request: Request) -> str:
    """Return the only field of `join` and `leave`. Raises BadRequest."""
    _allow_only(request, "group")
    return parse_name("group", request.fields.get("group"))
