"""The errors that clients see: each has a stable code, and `ANSWERS` says how it is answered.

Raise one of these anywhere. `rest/responses.py` answers it over HTTP, `protocol/server_frames.py`
in a WebSocket frame. Both read `ANSWERS`, the only place that maps a code to a status and to the
code of an error frame.
"""

from typing import ClassVar, NamedTuple

MAX_DETAIL_CHARACTERS = 500  # enough for a sentence; a name that it quotes may be a megabyte long


class HeraldError(Exception):
    """An error that the client is told about.

    `detail` is for the client. It names what was wrong, but never contains a token, a message's
    content or another tenant's data. `retry_after` is in seconds, and set where a retry can help.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        # A quoted name may contain a lone surrogate, which UTF-8 can't encode.
        self.detail = detail.encode(errors="replace").decode()
        if len(self.detail) > MAX_DETAIL_CHARACTERS:
            self.detail = self.detail[:MAX_DETAIL_CHARACTERS] + "…"
        super().__init__(self.detail)
        self.retry_after = retry_after


class InternalError(HeraldError):
    """A bug in Herald. The log has the traceback, the client only this."""

    def __init__(self) -> None:
        super().__init__("Internal error. It has been logged.")


class BadRequest(HeraldError):
    """A request that can't be read, or asks for something that doesn't exist in the protocol."""

    code = "bad_request"


class Unauthorized(HeraldError):
    """A token that is missing or not valid."""

    code = "unauthorized"


class TokenExpired(HeraldError):
    """A token that was valid and has expired since."""

    code = "token_expired"


class Forbidden(HeraldError):
    """A valid token, address or origin that may not do this."""

    code = "forbidden"


class InsufficientScope(Forbidden):
    """A token without the required scope (RFC 6750 section 3.1)."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"the token lacks the scope {scope}")
        self.scope = scope


class NotFound(HeraldError):
    """A resource that doesn't exist, or that the caller may not see."""

    code = "not_found"


class PayloadTooLarge(HeraldError):
    """A message whose frame would be larger than API Gateway sends."""

    code = "payload_too_large"


class UnsupportedMediaType(HeraldError):
    """A body that is not declared as JSON."""

    code = "unsupported_media_type"


class RequestInProgress(HeraldError):
    """An `Idempotency-Key` whose first request has not ended yet."""

    code = "request_in_progress"


class IdempotencyKeyReused(HeraldError):
    """An `Idempotency-Key` that was used before with another body."""

    code = "idempotency_key_reused"


class TooManyConnections(HeraldError):
    """A handshake of a user who already has as many connections as allowed."""

    code = "too_many_connections"


class ConnectionGone(HeraldError):
    """A frame on a connection that Herald has removed."""

    code = "connection_gone"


class RateLimited(HeraldError):
    """A user who sends, connects or resumes too fast."""

    code = "rate_limited"


class QuotaExceeded(HeraldError):
    """A user who has used up their daily quota."""

    code = "quota_exceeded"


class Unavailable(HeraldError):
    """An AWS service that failed or timed out; a retry may succeed."""

    code = "unavailable"


class Contended(Unavailable):
    """Concurrent writes to one item conflicted; storage itself is healthy."""


class KeysUnavailable(Unavailable):
    """The keys of encrypted messages can't be had; other messages don't need them."""


class ErrorAnswer(NamedTuple):
    """The answer to a code: `status` and `title` over HTTP, `frame_code` in an error frame."""

    status: int
    title: str
    frame_code: str


ANSWERS: dict[str, ErrorAnswer] = {
    "bad_request": ErrorAnswer(400, "Bad request", "bad_request"),
    "unauthorized": ErrorAnswer(401, "Unauthorized", "unauthorized"),
    "token_expired": ErrorAnswer(401, "Token expired", "token_expired"),
    "forbidden": ErrorAnswer(403, "Forbidden", "forbidden"),
    "not_found": ErrorAnswer(404, "Not found", "bad_request"),
    "payload_too_large": ErrorAnswer(413, "Payload too large", "payload_too_large"),
    "unsupported_media_type": ErrorAnswer(415, "Unsupported media type", "bad_request"),
    "request_in_progress": ErrorAnswer(409, "Request in progress", "bad_request"),
    "idempotency_key_reused": ErrorAnswer(422, "Idempotency key reused", "bad_request"),
    "too_many_connections": ErrorAnswer(429, "Too many connections", "rate_limited"),
    "connection_gone": ErrorAnswer(410, "Connection gone", "unauthorized"),
    "rate_limited": ErrorAnswer(429, "Too many requests", "rate_limited"),
    "quota_exceeded": ErrorAnswer(429, "Quota exceeded", "quota_exceeded"),
    "unavailable": ErrorAnswer(503, "Service unavailable", "unavailable"),
    "internal": ErrorAnswer(500, "Internal error", "internal"),
}
