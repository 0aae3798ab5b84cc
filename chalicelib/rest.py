"""REST requests and answers, apart from the framework that carries them."""

from collections.abc import Callable, Mapping
from math import ceil
from typing import TYPE_CHECKING

from chalicelib.errors import (
    ANSWERS,
    BadRequest,
    HeraldError,
    InsufficientScope,
    UnsupportedMediaType,
)
from chalicelib.json_text import parse_json
from chalicelib.messages import Interrupted, Message, MessageParser
from chalicelib.principal import Principal

if TYPE_CHECKING:
    from chalicelib.users import Users

Headers = dict[str, str | list[str]]

SAFE_HEADERS: Headers = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""For browsers: an answer is kept nowhere, shown as no page, and taken for nothing but its type.
https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html#security-headers"""

PROBLEM_TYPE_PREFIX = "urn:herald:problem:"


class Intake:
    """Takes in what a POST brings."""

    def __init__(
        self, users: "Users", parser: Callable[[Principal], MessageParser], now: Callable[[], int]
    ) -> None:
        """`parser` reads what a principal sends; `now` is the clock, in epoch milliseconds."""
        self._users = users
        self._parser = parser
        self._now = now

    def messages(
        self, sender: Principal, headers: Mapping[str, str], body: str | bytes
    ) -> list[Message]:
        """The messages of a request. Whatever it holds, its sender pays for it.

        Raises UnsupportedMediaType, BadRequest; before these RateLimited, QuotaExceeded.
        """
        messages: list[Message] = []
        error = None
        try:
            messages = self._parser(sender).batch(json_body(headers, body))
        except (BadRequest, UnsupportedMediaType) as wrong:
            error = wrong
        self._users.charge(sender, self._now(), len(messages))
        if error is not None:
            raise error
        return messages


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
