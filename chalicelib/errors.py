"""What can go wrong, each with the stable code that clients see, and how each is answered.

Raise one of these anywhere below the edge; `app.py` turns it into an answer through `ANSWERS`,
the only place that maps a code to an HTTP status and to a WebSocket error code.
"""

from dataclasses import dataclass
from typing import ClassVar

MAX_DETAIL_CHARACTERS = 500  # a sentence and the name that it quotes, which may be a megabyte


class HeraldError(Exception):
    """An error that a client is told about.

    `detail` is one sentence for the client: it names what was wrong, never a token, a message's
    content or another tenant's data. `retry_after` is in seconds, where trying again can help.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        # What a detail quotes may hold a lone surrogate, which no answer could carry.
        self.detail = detail.encode(errors="replace").decode()
        if len(self.detail) > MAX_DETAIL_CHARACTERS:
            self.detail = self.detail[:MAX_DETAIL_CHARACTERS] + "…"
        super().__init__(self.detail)
        self.retry_after = retry_after


class BadRequest(HeraldError):
    code = "bad_request"


class Unauthorized(HeraldError):
    code = "unauthorized"


class TokenExpired(HeraldError):
    code = "token_expired"


class Forbidden(HeraldError):
    code = "forbidden"


class InsufficientScope(Forbidden):
    """The token lacks a scope (RFC 6750 section 3.1)."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"the token lacks the scope {scope}")
        self.scope = scope


class NotFound(HeraldError):
    code = "not_found"


class PayloadTooLarge(HeraldError):
    code = "payload_too_large"


class UnsupportedMediaType(HeraldError):
    code = "unsupported_media_type"


class RequestInProgress(HeraldError):
    code = "request_in_progress"


class IdempotencyKeyReused(HeraldError):
    code = "idempotency_key_reused"


class TooManyConnections(HeraldError):
    code = "too_many_connections"


class ConnectionGone(HeraldError):
    code = "connection_gone"


class RateLimited(HeraldError):
    code = "rate_limited"


class QuotaExceeded(HeraldError):
    code = "quota_exceeded"


class Unavailable(HeraldError):
    code = "unavailable"


class Contended(Unavailable):
    """What is asked for at once gets in its own way: storage is well."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a code is answered: over HTTP (status, title) and in a WebSocket error frame."""

    status: int
    title: str
    frame_code: str


ANSWERS: dict[str, Answer] = {
    "bad_request": Answer(400, "Bad request", "bad_request"),
    "unauthorized": Answer(401, "Unauthorized", "unauthorized"),
    "token_expired": Answer(401, "Token expired", "token_expired"),
    "forbidden": Answer(403, "Forbidden", "forbidden"),
    "not_found": Answer(404, "Not found", "bad_request"),
    "payload_too_large": Answer(413, "Payload too large", "payload_too_large"),
    "unsupported_media_type": Answer(415, "Unsupported media type", "bad_request"),
    "request_in_progress": Answer(409, "Request in progress", "bad_request"),
    "idempotency_key_reused": Answer(422, "Idempotency key reused", "bad_request"),
    "too_many_connections": Answer(429, "Too many connections", "rate_limited"),
    "connection_gone": Answer(410, "Connection gone", "unauthorized"),
    "rate_limited": Answer(429, "Too many requests", "rate_limited"),
    "quota_exceeded": Answer(429, "Quota exceeded", "quota_exceeded"),
    "unavailable": Answer(503, "Service unavailable", "unavailable"),
    "internal": Answer(500, "Internal error", "internal"),
}
