"""The frames that Herald sends over a WebSocket, as `docs/asyncapi.yaml` describes them.

One frame is built elsewhere: `messages`, which delivers messages to their recipients.
`delivery/frames.py` assembles its bytes once for all recipients, since it is the hot path.
"""

from chalicelib.clock import EpochMs
from chalicelib.errors import ANSWERS, HeraldError
from chalicelib.protocol.reports import Queued, Report

ServerFrame = dict[str, object]


def with_ref(frame: ServerFrame, ref: str | None) -> ServerFrame:
    """Return `frame` as the answer to a request that had `ref`; None stands for no `ref`."""
    return frame if ref is None else {**frame, "ref": ref}


# --- Answers


def pong(timestamp: EpochMs) -> ServerFrame:
    """Answer `ping` with the time."""
    return {"type": "pong", "timestamp": timestamp}


def heartbeat(timestamp: EpochMs) -> ServerFrame:
    """Answer `heartbeat` with the time."""
    return {"type": "heartbeat", "timestamp": timestamp}


def ack(sent: Report | Queued) -> ServerFrame:
    """Answer `send` with the message's report, or with the note that it is queued."""
    return {"type": "ack", **sent.to_dict()}


def joined(group: str) -> ServerFrame:
    """Answer `join`."""
    return {"type": "joined", "group": group}


def left(group: str) -> ServerFrame:
    """Answer `leave`."""
    return {"type": "left", "group": group}


def resumed(*, count: int, complete: bool) -> ServerFrame:
    """Answer `resume` with the number of messages sent, and whether any may be missing."""
    return {"type": "resumed", "count": count, "complete": complete}


def refreshed(expires_at: EpochMs) -> ServerFrame:
    """Answer `refresh` with the new token's expiry."""
    return {"type": "refreshed", "expiresAt": expires_at}


def error(failure: HeraldError) -> ServerFrame:
    """Answer any request that failed."""
    frame: ServerFrame = {
        "type": "error",
        "code": ANSWERS[failure.code].frame_code,
        "message": failure.detail,
    }
    if failure.retry_after is not None:
        frame["retryAfterMs"] = max(1, round(failure.retry_after * 1000))
    return frame


# --- Notices


def token_expired() -> ServerFrame:
    """Tell a client that its connection ends now, because its token has expired."""
    return {"type": "notice", "code": "token_expired"}


def connection_removed(connection_id: str, reason: str) -> ServerFrame:
    """Tell a user that one of their connections was removed, and why."""
    return {
        "type": "notice",
        "code": "connection_removed",
        "connectionId": connection_id,
        "reason": reason,
    }
