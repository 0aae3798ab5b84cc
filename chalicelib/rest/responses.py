"""REST requests and answers, apart from the framework that carries them."""

from math import ceil

from chalicelib.errors import (
    ANSWERS,
    HeraldError,
    InsufficientScope,
)
from chalicelib.protocol.reports import Interrupted

Headers = dict[str, str | list[str]]

SAFE_HEADERS: Headers = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""For browsers: an answer is kept nowhere, shown as no page, and taken for nothing but its type.
https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html#security-headers"""

PROBLEM_TYPE_PREFIX = "urn:herald:problem:"


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
