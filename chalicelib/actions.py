"""What a client may ask over its WebSocket, and the frame that answers it."""

import logging
from collections.abc import Callable
from typing import Any

from chalicelib.broadcast import Broadcaster
from chalicelib.connections import Connections
from chalicelib.delivery import Delivery
from chalicelib.errors import ANSWERS, BadRequest, HeraldError
from chalicelib.events import WebSocketEvent
from chalicelib.messages import MessageParser, encode, parse_json
from chalicelib.principal import Principal

AnswerFrame = dict[str, object]

ANSWER_SECONDS = 1.0  # for the answer itself, when what it answers took all the time

logger = logging.getLogger("herald.actions")


class Actions:
    """Answers the frames of connected clients; a wrong one gets an error frame, never a crash."""

    def __init__(
        self,
        broadcaster: Broadcaster,
        delivery: Delivery,
        connections: Connections,
        now: Callable[[], int],
        parser: Callable[[Principal], MessageParser],
    ) -> None:
        """`now` is the clock, in epoch milliseconds; `parser` reads what a principal sends."""
        self._broadcaster = broadcaster
        self._delivery = delivery
        self._connections = connections
        self._now = now
        self._parser = parser
        self._actions = {"ping": self._ping, "send": self._send}

    def receive(self, event: WebSocketEvent, deadline: float) -> None:
        """Do what a MESSAGE event asks, and send its answer. `deadline`: see `Delivery.deliver`."""
        frame = self._answer(event, deadline)
        deadline += ANSWER_SECONDS
        self._delivery.post(event.connection_id, event.endpoint, encode(frame), deadline)

    def _answer(self, event: WebSocketEvent, deadline: float) -> AnswerFrame:
        ref: str | None = None
        try:
            request = _request(event.body)
            ref = _ref(request)
            now = self._now()
            principal = event.principal or self._connections.principal(event.connection_id)
            if principal is None:
                raise BadRequest("the connection is not known")
            principal.require_unexpired(now / 1000)
            self._connections.touch(event.connection_id, now)
            action = request.pop("action", None)
            if not isinstance(action, str) or action not in self._actions:
                raise BadRequest(f"action must be one of {', '.join(self._actions)}")
            frame = self._actions[action](request, principal, deadline)
        except HeraldError as error:
            frame = error_frame(error)
        except Exception:
            logger.exception(
                "a message handler failed", extra={"connectionId": event.connection_id}
            )
            frame = error_frame(HeraldError("something went wrong here; it has been logged"))
        return frame if ref is None else {**frame, "ref": ref}

    def _ping(self, request: dict[str, Any], principal: Principal, deadline: float) -> AnswerFrame:
        for name in request:
            raise BadRequest(f"{name} is not a known field of ping")
        return {"type": "pong", "timestamp": self._now()}

    def _send(self, request: dict[str, Any], principal: Principal, deadline: float) -> AnswerFrame:
        message = self._parser(principal).one(request)
        [report] = self._broadcaster.send([message], principal, deadline)
        return {"type": "ack", **report.to_dict()}


def error_frame(error: HeraldError) -> AnswerFrame:
    """The error frame that tells a client of `error`."""
    frame: AnswerFrame = {
        "type": "error",
        "code": ANSWERS[error.code].frame_code,
        "message": error.detail,
    }
    if error.retry_after is not None:
        frame["retryAfterMs"] = round(error.retry_after * 1000)
    return frame


def _request(text: str) -> dict[str, Any]:
    request = parse_json(text)
    if not isinstance(request, dict):
        raise BadRequest("a frame must be a JSON object")
    return request


def _ref(request: dict[str, Any]) -> str | None:
    ref = request.pop("ref", None)
    if ref is not None and not isinstance(ref, str):
        raise BadRequest("ref must be a string")
    return ref
