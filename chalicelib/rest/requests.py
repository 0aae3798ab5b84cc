"""REST requests: the caller, the names in the path, the body and the deadline."""

import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from chalice.app import Request

from chalicelib.auth.access import AccessRules
from chalicelib.auth.principal import Principal, Scope
from chalicelib.protocol.messages import parse_name
from chalicelib.runtime.deadlines import answer_deadline
from chalicelib.runtime.logs import attribute

ChargeRead = Callable[[Principal], None]
"""Charges a caller for a request that sends nothing. Raises RateLimited, Unavailable."""


class RestRequest:
    """A request to one of the routes."""

    def __init__(
        self, request: Request, context: Any, *, rules: AccessRules, charge_read: ChargeRead
    ) -> None:
        """Take Chalice's request, Lambda's context object, and the rules and charge for callers."""
        self.headers: Mapping[str, str] = request.headers
        self.deadline = answer_deadline(context)
        self._request = request
        self._rules = rules
        self._charge_read = charge_read

    @property
    def body(self) -> str | bytes:
        """The body as the client sent it."""
        return self._request.raw_body

    def caller(self) -> Principal:
        """Return the principal whom the authorizer identified.

        Raises TokenExpired, since API Gateway caches the authorizer's verdict, and Forbidden for
        an address or an origin that is not allowed.
        """
        context = self._request.context
        principal = Principal.from_context(context["authorizer"])
        attribute(principal.tenant, principal.user_id, context["identity"]["sourceIp"])
        principal.require_unexpired(time.time())
        self._rules.check(context["identity"]["sourceIp"], self.headers.get("origin"))
        return principal

    def reader(self) -> Principal:
        """Return the caller, charged for a request that sends nothing.

        Raises RateLimited, Unavailable, and what `caller` raises.
        """
        caller = self.caller()
        self._charge_read(caller)
        return caller

    def owner(self, user_id: str, scope: Scope) -> tuple[str | None, str]:
        """Return the tenant and the id of the user whom the path names. Charges the caller.

        Raises BadRequest for an id that is not a name, what `reader` raises, and InsufficientScope
        if the user is not the caller and the caller lacks `scope`.
        """
        caller = self.reader()
        user_id = path_name("userId", user_id)
        if user_id != caller.user_id:
            caller.require(scope)
        return caller.tenant, user_id


def path_name(parameter: str, value: str) -> str:
    """Return the name that the path has for `parameter`, decoded. Raises BadRequest."""
    return parse_name(parameter, unquote(value))
