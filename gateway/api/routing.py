"""The gateway's ASGI app: which API answers which path."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from gateway.api.connections import ConnectionsApi
from gateway.api.events import WEBSOCKET_STAGE, new_id
from gateway.api.rest import RestApi
from gateway.api.websocket import WebSocketApi
from gateway.local_hosts import LocalHosts, refusal_text
from gateway.log import log_line, printable

HTTP_METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
WEBSOCKET_PATHS = (f"/{WEBSOCKET_STAGE}", f"/{WEBSOCKET_STAGE}/")
"""AWS's own example ends in a slash:
https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-how-to-call-websocket-api-wscat.html"""
CONNECTIONS_PATHS = (
    "/{stage}/@connections/{connection_id:path}",
    "/@connections/{connection_id:path}",  # as behind a custom domain without a base path
)


def asgi_app(
    websocket_api: WebSocketApi,
    connections_api: ConnectionsApi,
    rest_api: RestApi,
    console: Sequence[BaseRoute],
) -> ASGIApp:
    """Return the app. The REST API answers every path that is not another API's."""
    app = Starlette(
        routes=[
            *(  # first, since a broadcast makes thousands of these requests
                Route(path, connections_api.endpoint, methods=["POST", "GET", "DELETE"])
                for path in CONNECTIONS_PATHS
            ),
            *(WebSocketRoute(path, websocket_api.endpoint) for path in WEBSOCKET_PATHS),
            *(Route(path, _upgrade_required, methods=HTTP_METHODS) for path in WEBSOCKET_PATHS),
            *console,
        ]
    )
    app.router.redirect_slashes = False
    app.router.default = _rest_app(rest_api, app.router.not_found)
    return app


def only_for(hosts: LocalHosts, app: ASGIApp) -> ASGIApp:
    """Return an app that refuses requests and handshakes for other hosts than these with 403."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        host = hosts.foreign(scope)
        if host is None:
            return await app(scope, receive, send)
        log_line("REFUSED", f"{printable(scope['path'])} for the host {printable(host)!r}")
        response = _wrong_host(refusal_text(host, scope))
        if scope["type"] == "websocket":
            return await WebSocket(scope, receive, send).send_denial_response(response)
        return await response(scope, receive, send)

    return respond


def _wrong_host(reason: str) -> Response:
    headers = {"x-amzn-RequestId": new_id(), "x-amzn-ErrorType": "ForbiddenException"}
    return JSONResponse({"message": reason}, 403, headers)


async def _upgrade_required(request: Request) -> Response:
    return PlainTextResponse("Upgrade Required", 426, {"Upgrade": "websocket"})


def _rest_app(rest_api: RestApi, not_found: ASGIApp) -> ASGIApp:
    """Return an app instead of a route, whose pattern would not match a path with a newline."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await not_found(scope, receive, send)
        response = await rest_api.endpoint(Request(scope, receive))
        return await response(scope, receive, send)

    return respond
