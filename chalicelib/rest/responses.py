"""REST requests and answers, apart from the framework that carries them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from chalicelib.errors import (
    ANSWERS,
    BadRequest,
    HeraldError,
    InsufficientScope,
    UnsupportedMediaType,
)
from chalicelib.protocol.messages import Interrupted
from chalicelib.protocol.strict_json import parse_json

Headers = dict[str, str | list[str]]

SAFE_HEADERS: Headers = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""For browsers: an answer is kept nowhere, shown as no page, and taken for nothing but its type.
https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html#security-headers"""

MAX_KEY_CHARACTERS = 255
PROBLEM_TYPE_PREFIX = "urn:herald:problem:"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose status is its own, or that of a request which had been carried out before."""

    body: bytes
    status: int
    replayed: bool = False


def json_body(headers: Mapping[str, str], body: str | bytes) -> object:
    """The JSON of a request. Raises UnsupportedMediaType or BadRequest."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the Content-Type must be application/json")
    try:
        text = body if isinstance(body, str) else body.decode()
    except UnicodeDecodeError:
        raise BadRequest("not JSON: the body is not UTF-8") from None
    return parse_json(text)


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The `Idempotency-Key` of a request, if it has one. Raises BadRequest."""
    key = headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise BadRequest(f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} characters")
    return key


def problem(error: HeraldError) -> tuple[int, Headers, dict[str, object]]:
    """Status, headers and body (RFC 9457) that tell a client of `error`."""
    answer = ANSWERS[error.code]
    headers = {**SAFE_HEADERS, "Content-Type": "application/problem+json"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, ceil(error.retry_after)))
    if answer.status == 401:  # RFC 6750 section 3
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    elif isinstance(error, InsufficientScope):
        headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{error.scope}"'
    body: dict[str, object] = {
        "type": PROBLEM_TYPE_PREFIX + error.code,
        "title": answer.title,
        "status": answer.status,
        "detail": error.detail,
        "code": error.code,
    }
    if isinstance(error, Interrupted):
        body["messages"] = [report.to_dict() for report in error.reports]
    return answer.status, headers, body
