"""The console at `/console`: its page, and the endpoints that the page calls.

Since the console makes tokens, it answers only this machine, even if the gateway listens on the
network, and only its own page: a request must name this machine as its host, which keeps out
another site's name that resolves to it, and must not come from another origin.
"""

import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from gateway.api.event_stream import EventStream
from gateway.api.fault_injection import (
    DELIVERY_STATUSES,
    HANDSHAKE_STATUSES,
    MAX_DELAY_MS,
    DeliveryFault,
    FaultInjection,
)
from gateway.api.sockets import Sockets
from gateway.configuration import PROJECT, Configuration, ConfigurationError
from gateway.local_hosts import LocalHosts
from gateway.tokens import token

PAGE_FILES = PROJECT / "console"
CLIENT_FILE = PROJECT / "clients" / "js" / "herald.js"
MAX_LIFETIME_SECONDS = 7 * 24 * 60 * 60
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src *; img-src 'self' data:; frame-ancestors 'none';"
        " base-uri 'none'; form-action 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
JSON_TYPES = {str: "a string", int: "an integer", list: "an array"}
TOKEN_FIELDS = {"user": str, "scope": str, "tenant": str, "groups": list, "seconds": int}

Endpoint = Callable[[Request], Awaitable[Response]]


class BadRequest(ValueError):
    """A request's body is wrong. The text says what is wrong with it."""


class Console:
    """The console's endpoints, for one gateway."""

    def __init__(
        self,
        configuration: Configuration,
        sockets: Sockets,
        *,
        event_stream: EventStream,
        faults: FaultInjection,
    ) -> None:
        self._configuration = configuration
        # Without GATEWAY_ALLOWED_HOSTS: a tunnel's requests also come from this machine.
        self._hosts = LocalHosts({configuration.host})
        self._sockets = sockets
        self._event_stream = event_stream
        self._faults = faults

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes of the page, its files and its endpoints."""

        def route(path: str, endpoint: Endpoint, method: str) -> Route:
            return Route(f"/console{path}", self._guarded(endpoint), methods=[method])

        return [
            route("", self._page, "GET"),
            route("/client/herald.js", self._client, "GET"),
            route("/events", self._events, "GET"),
            route("/token", self._token, "POST"),
            route("/handshakes", self._handshake_fault, "PUT"),
            route("/connections/{connection_id}", self._delivery_fault, "PUT"),
            route("/connections/{connection_id}", self._expire, "DELETE"),
            Mount("/console", _Files(directory=PAGE_FILES)),
        ]

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that refuses other machines and origins, and answers 400 with why."""

        @wraps(endpoint)
        async def respond(request: Request) -> Response:
            if request.client is None or not ipaddress.ip_address(request.client.host).is_loopback:
                return _error(403, "the console answers only the machine that it runs on")
            if self._hosts.foreign(request.scope) is not None or not _is_own(request.headers):
                return _error(403, "the console answers only its own page")
            try:
                response = await endpoint(request)
            except BadRequest as error:
                return _error(400, str(error))
            response.headers.update(SECURITY_HEADERS)
            return response

        return respond

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGE_FILES / "index.html")

    async def _client(self, request: Request) -> Response:
        return FileResponse(CLIENT_FILE)

    async def _events(self, request: Request) -> Response:
        """Stream what happens as server-sent events, each an array."""

        async def stream() -> AsyncIterator[str]:
            start = {"kind": "start", "connections": len(self._sockets)}
            yield f"data: {json.dumps([start])}\n\n"
            async for events in self._event_stream.watch():
                yield f"data: {json.dumps(events)}\n\n" if events else ":\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _token(self, request: Request) -> Response:
        """Make a token as `make token` does."""
        fields = await _body(request, TOKEN_FIELDS)
        user = fields.pop("user", "")
        seconds = fields.pop("seconds", 3600)
        if not 1 <= len(user) <= 128:
            raise BadRequest("user must have 1 to 128 characters")
        if not 1 <= seconds <= MAX_LIFETIME_SECONDS:
            raise BadRequest(f"seconds must be from 1 to {MAX_LIFETIME_SECONDS}")
        claims = {name: value for name, value in fields.items() if value and name != "scope"}
        try:
            signed = token(
                self._configuration.variables,
                user,
                fields.get("scope", ""),
                seconds=seconds,
                **claims,
            )
        except ConfigurationError as error:
            raise BadRequest(str(error)) from error
        return JSONResponse({"token": signed})

    async def _handshake_fault(self, request: Request) -> Response:
        """Refuse every handshake with `status`; accept them again if it is absent."""
        status = (await _body(request, {"status": int})).get("status")
        self._faults.handshake_status = _one_of(status, HANDSHAKE_STATUSES)
        return Response(status_code=204)

    async def _delivery_fault(self, request: Request) -> Response:
        """Delay deliveries to a connection, or answer them with `status`."""
        fields = await _body(request, {"delayMs": int, "status": int})
        delay_ms = fields.get("delayMs", 0)
        if not 0 <= delay_ms <= MAX_DELAY_MS:
            raise BadRequest(f"delayMs must be from 0 to {MAX_DELAY_MS}")
        status = _one_of(fields.get("status"), DELIVERY_STATUSES)
        fault = DeliveryFault(delay_ms=delay_ms, status=status)
        self._faults.deliveries[request.path_params["connection_id"]] = fault
        return Response(status_code=204)

    async def _expire(self, request: Request) -> Response:
        """Close a connection as if it had reached its maximum duration."""
        if not self._sockets.expire(request.path_params["connection_id"]):
            return _error(404, "this connection is not open")
        return Response(status_code=204)


def _is_own(headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from the console's own origin, or from no page at all."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


class _Files(StaticFiles):
    """The page's files, with the security headers."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(SECURITY_HEADERS)
        return response


async def _body(request: Request, fields: Mapping[str, type]) -> dict[str, Any]:
    """Return the fields of a JSON object that are not null. Raises BadRequest."""
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError:
        raise BadRequest("the body must be JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be an object")
    for name, value in body.items():
        if name not in fields:
            raise BadRequest(f"{name} is unknown; known fields: {', '.join(fields)}")
        if value is not None and type(value) is not fields[name]:
            raise BadRequest(f"{name} must be {JSON_TYPES[fields[name]]}")
    return {name: value for name, value in body.items() if value is not None}


def _one_of(status: int | None, allowed: frozenset[int]) -> int | None:
    """Return a status that is allowed or absent. Raises BadRequest."""
    if status is not None and status not in allowed:
        raise BadRequest(f"status must be one of {', '.join(map(str, sorted(allowed)))}, or absent")
    return status


def _error(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status, headers=SECURITY_HEADERS)
