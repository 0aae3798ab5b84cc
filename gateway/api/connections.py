"""`@connections`, the API with which an app reaches its WebSocket clients.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-how-to-call-websocket-api-connections.html
"""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.bodies import BodyTooLarge, read_body
from gateway.api.event_stream import EventStream
from gateway.api.events import WEBSOCKET_STAGE, new_id
from gateway.api.fault_injection import FaultInjection
from gateway.api.sockets import CLOSED_BY_API, MAX_MESSAGE_BYTES, BufferFull, Socket, Sockets
from gateway.aws.signatures import Credentials, SignatureError, SignatureVerifier
from gateway.log import log_line

CURE = "Sign with the credentials in .herald/aws.config: AWS_CONFIG_FILE=.herald/aws.config"
"""The remedy for an SDK whose requests are refused."""
CONNECTION_ID = re.compile(r"[A-Za-z0-9_-]{15}=")


class ConnectionsApi:
    """Sends to a connection (POST), describes it (GET) and closes it (DELETE)."""

    def __init__(
        self,
        sockets: Sockets,
        *,
        credentials: Credentials,
        event_stream: EventStream,
        faults: FaultInjection,
    ) -> None:
        """Serve `sockets` to requests that are signed with `credentials`."""
        self._verifier = SignatureVerifier(credentials, service="execute-api")
        self._sockets = sockets
        self._event_stream = event_stream
        self._faults = faults

    async def endpoint(self, request: Request) -> Response:
        """Answer one request about one connection, if it is signed."""
        try:
            return await self._respond(request)
        except SignatureError as error:
            log_line("REFUSED", f"{request.method} @connections  {error.error_type}  {CURE}")
            return _error(403, error.error_type, str(error))

    async def _respond(self, request: Request) -> Response:
        """Answer a request. Raises SignatureError."""
        authorization = self._verifier.authorization(request.scope)
        try:
            body = await read_body(request, MAX_MESSAGE_BYTES)
        except BodyTooLarge:
            return _error(413, "PayloadTooLargeException", "Message too long")
        self._verifier.verify(authorization, request.scope, body)
        connection_id = request.path_params["connection_id"]
        if request.path_params.get("stage", WEBSOCKET_STAGE) != WEBSOCKET_STAGE:
            return _error(403, "ForbiddenException", "Forbidden")
        if not CONNECTION_ID.fullmatch(connection_id):
            return _error(400, "BadRequestException", f"Invalid connectionId: {connection_id}")
        socket = self._sockets.find(connection_id)
        if socket is None:
            return _error(410, "GoneException")
        if request.method == "POST":
            return await self._post(socket, body)
        if request.method == "DELETE":
            socket.close(*CLOSED_BY_API)
            return _response(204)
        return _response(200, json.dumps(_description(socket)).encode())

    async def _post(self, socket: Socket, body: bytes) -> Response:
        """Send a message, or do what the console's fault says instead."""
        connection_id = socket.context.connection_id
        fault = self._faults.of_delivery(connection_id)
        if fault.delay_ms:
            await asyncio.sleep(fault.delay_ms / 1000)
        response = FAULT_RESPONSES[fault.status]() if fault.status else _send(socket, body)
        self._event_stream.notify(
            "delivery",
            connectionId=connection_id,
            connections=len(self._sockets),
            status=response.status_code,
            bytes=len(body),
        )
        return response


def _send(socket: Socket, body: bytes) -> Response:
    if socket.closing is not None:  # it may have begun during the delay
        return _error(410, "GoneException")
    try:
        socket.send(body.decode("utf-8", "replace"))
    except BufferFull:
        return _error(429, "LimitExceededException", "The client reads too slowly")
    return _response(200)


def _description(socket: Socket) -> dict[str, Any]:
    """Return what GetConnection answers: lower camel case, times in ISO 8601 with milliseconds."""
    headers = dict(socket.context.headers)
    identity = {"sourceIp": socket.context.source_ip}
    if "User-Agent" in headers:
        identity["userAgent"] = headers["User-Agent"]
    return {
        "connectedAt": _iso(socket.context.connected_at / 1000),
        "identity": identity,
        "lastActiveAt": _iso(socket.last_active),
    }


def _iso(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _response(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Response:
    return Response(
        body,
        status,
        headers={"x-amzn-RequestId": new_id(), **(headers or {})},
        media_type="application/json",
    )


def _error(status: int, error_type: str, message: str | None = None) -> Response:
    body = b"" if message is None else json.dumps({"message": message}).encode()
    return _response(status, body, {"x-amzn-ErrorType": error_type})


FAULT_RESPONSES: dict[int, Callable[[], Response]] = {
    403: lambda: _error(403, "ForbiddenException", "Forbidden"),
    410: lambda: _error(410, "GoneException"),
    429: lambda: _error(429, "LimitExceededException", "Too many requests"),
    500: lambda: _error(500, "InternalServerErrorException", "Internal server error"),
}
