"""REST responses: JSON, or a problem (RFC 9457) for an error."""

import logging
from collections.abc import Callable
from functools import wraps
from math import ceil

from chalice.app import Chalice, Response

from chalicelib.auth.access import AccessRules
from chalicelib.errors import ANSWERS, HeraldError, InsufficientScope, InternalError
from chalicelib.protocol.reports import Interrupted, Reply
from chalicelib.protocol.strict_json import encode
from chalicelib.rest.requests import ChargeRead, RestRequest
from chalicelib.runtime.logs import RefusalLog

Headers = dict[str, str | list[str]]

SAFE_HEADERS: Headers = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""Tell browsers not to store an answer, not to show it as a page, and not to guess its type.
https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html#security-headers"""

JSON_HEADERS: Headers = {**SAFE_HEADERS, "Content-Type": "application/json"}
REPLAY_HEADERS: Headers = {**JSON_HEADERS, "Idempotent-Replayed": "true"}

PROBLEM_TYPE_PREFIX = "urn:herald:problem:"

View = Callable[..., Reply | dict[str, object] | None]
"""A route's function: takes the request, then the parts of the path by name."""

logger = logging.getLogger("herald.rest")
refusals = RefusalLog(logger)


def answering(
    app: Chalice, rules: AccessRules, charge_read: ChargeRead
) -> Callable[[View], Callable[..., Response]]:
    """Return a decorator for the routes' functions.

    It passes the current request as the first argument, and answers the returned value as JSON,
    None with 204, an error with a problem.
    """

    def decorate(view: View) -> Callable[..., Response]:
        @wraps(view)
        def answered(**path: str) -> Response:
            current = app.current_request
            assert current is not None  # noqa: S101 - Chalice sets it before it calls a route
            request = RestRequest(current, app.lambda_context, rules=rules, charge_read=charge_read)
            try:
                return success(view(request, **path))
            except HeraldError as error:
                refusals.add("request", error)
                return problem(error)
            except Exception:
                logger.exception("a route failed")
                return problem(InternalError())

        return answered

    return decorate


def success(value: Reply | dict[str, object] | None) -> Response:
    """Return the response for the value of a route's function."""
    if value is None:
        return Response("", SAFE_HEADERS, 204)
    if isinstance(value, Reply):
        headers = REPLAY_HEADERS if value.replayed else JSON_HEADERS
        return Response(value.body.decode(), headers, value.status)
    return Response(encode(value).decode(), JSON_HEADERS)


def problem(error: HeraldError) -> Response:
    """Return the response (RFC 9457) that tells a client of `error`."""
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
    return Response(encode(body).decode(), headers, answer.status)
