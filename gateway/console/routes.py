"""The console at `/console`: its page, and what the page asks of the gateway.

It hands out tokens, so it answers this machine alone, wherever else the gateway listens, and only
pages of its own: a request must name this machine as its host (no other site's name that leads
here), and come from no other page.
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

from gateway.api.websocket import WebSocketApi
from gateway.configuration import PROJECT, Configuration, ConfigurationError
from gateway.console.event_stream import Feed
from gateway.console.fault_injection import (
    DELIVERY_STATUSES,
    HANDSHAKE_STATUSES,
    MAX_DELAY_MS,
    DeliveryFault,
    Faults,
)
from gateway.tokens import token

PAGES = PROJECT / "console"
CLIENT = PROJECT / "clients" / "js" / "herald.js"
MAX_LIFETIME_SECONDS = 7 * 24 * 60 * 60
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src *; img-src 'self' data:; frame-ancestors 'none';"
        " base-uri 'none'; form-action 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
TOKEN_FIELDS = {"user": str, "scope": str, "tenant": str, "groups": list, "seconds": int}

Endpoint = Callable[[Request], Awaitable[Response]]


class Wrong(ValueError):
    """A request's body is not what it should be; the text names what is wrong."""


class Console:
    """The console's endpoints, for one gateway."""

    def __init__(
        self,
        configuration: Configuration,
        websocket_api: WebSocketApi,
        feed: Feed,
        faults: Faults,
    ) -> None:
        self._configuration = configuration
        self._websocket_api = websocket_api
        self._feed = feed
        self._faults = faults

    @property
    def routes(self) -> list[BaseRoute]:
        def route(path: str, endpoint: Endpoint, method: str) -> Route:
            return Route(f"/console{path}", self._own(endpoint), methods=[method])

        return [
            route("", self._page, "GET"),
            route("/client/herald.js", self._client, "GET"),
            route("/events", self._events, "GET"),
            route("/token", self._token, "POST"),
            route("/handshakes", self._handshakes, "PUT"),
            route("/connections/{connection_id}", self._deliveries, "PUT"),
            route("/connections/{connection_id}", self._cut_off, "DELETE"),
            Mount("/console", _Files(directory=PAGES)),
        ]

    def _own(self, endpoint: Endpoint) -> Endpoint:
        """For this machine and its own pages, and with an error that says what was wrong."""

        @wraps(endpoint)
        async def answer(request: Request) -> Response:
            if request.client is None or not ipaddress.ip_address(request.client.host).is_loopback:
                return _refusal(
                    403, "the console answers the machine that it runs on, and no other"
                )
            if not self._is_own(request.headers):
                return _refusal(403, "the console answers only pages of its own")
            try:
                response = await endpoint(request)
            except Wrong as error:
                return _refusal(400, str(error))
            response.headers.update(SECURITY)
            return response

        return answer

    def _is_own(self, headers: Mapping[str, str]) -> bool:
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        origin = headers.get("origin")
        known = name in ("localhost", self._configuration.host) or _is_address(name)
        return known and (origin is None or urlsplit(origin).netloc == host)

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGES / "index.html")

    async def _client(self, request: Request) -> Response:
        return FileResponse(CLIENT)

    async def _events(self, request: Request) -> Response:
        """What happens, as server-sent events, each an array."""

        async def stream() -> AsyncIterator[str]:
            start = {"kind": "start", "connections": self._websocket_api.open_count}
            yield f"data: {json.dumps([start])}\n\n"
            async for events in self._feed.watch():
                yield f"data: {json.dumps(events)}\n\n" if events else ":\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _token(self, request: Request) -> Response:
        """A token for whoever the page names, as `make token` prints one."""
        asked = await _body(request, TOKEN_FIELDS)
        user = asked.pop("user", "")
        seconds = asked.pop("seconds", 3600)
        if not 1 <= len(user) <= 128:
            raise Wrong("user must have 1 to 128 characters")
        if not 1 <= seconds <= MAX_LIFETIME_SECONDS:
            raise Wrong(f"seconds must be from 1 to {MAX_LIFETIME_SECONDS}")
        claims = {name: value for name, value in asked.items() if value and name != "scope"}
        try:
            made = token(
                self._configuration.environment,
                user,
                asked.get("scope", ""),
                seconds=seconds,
                **claims,
            )
        except ConfigurationError as error:
            raise Wrong(str(error)) from error
        return JSONResponse({"token": made})

    async def _handshakes(self, request: Request) -> Response:
        """Refuse each handshake with `status`, or none where it is absent."""
        status = (await _body(request, {"status": int})).get("status")
        self._faults.handshake = _one_of(status, HANDSHAKE_STATUSES)
        return Response(status_code=204)

    async def _deliveries(self, request: Request) -> Response:
        """Delay what is delivered to a connection, or answer `status` instead."""
        asked = await _body(request, {"delayMs": int, "status": int})
        delay = asked.get("delayMs", 0)
        if not 0 <= delay <= MAX_DELAY_MS:
            raise Wrong(f"delayMs must be from 0 to {MAX_DELAY_MS}")
        status = _one_of(asked.get("status"), DELIVERY_STATUSES)
        fault = DeliveryFault(delay, status)
        self._faults.deliveries[request.path_params["connection_id"]] = fault
        return Response(status_code=204)

    async def _cut_off(self, request: Request) -> Response:
        """Close a connection, as API Gateway does by itself in the end."""
        if not self._websocket_api.cut_off(request.path_params["connection_id"]):
            return _refusal(404, "there is no such connection")
        return Response(status_code=204)


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(SECURITY)
        return response


async def _body(request: Request, fields: Mapping[str, type]) -> dict[str, Any]:
    """The fields of a JSON object that are there and not null. Raises Wrong."""
    try:
        found = json.loads(await request.body() or b"{}")
    except ValueError:
        raise Wrong("the body is not JSON") from None
    if not isinstance(found, dict):
        raise Wrong("the body must be an object")
    for name, value in found.items():
        if name not in fields:
            raise Wrong(f"{name} is unknown; known are {', '.join(fields)}")
        if value is not None and type(value) is not fields[name]:
            raise Wrong(f"{name} must be of JSON's kind for {fields[name].__name__}")
    return {name: value for name, value in found.items() if value is not None}


def _one_of(status: int | None, allowed: frozenset[int]) -> int | None:
    if status is not None and status not in allowed:
        raise Wrong(f"status must be one of {', '.join(map(str, sorted(allowed)))}, or absent")
    return status


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status, headers=SECURITY)
