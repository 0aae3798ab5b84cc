"""The WebSocket API: handshake, messages, disconnect, and `@connections`."""

import asyncio
import contextlib
import json
import re
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from gateway.api.authorization import Refused, authorize
from gateway.api.events import WebSocketContext, canonical_headers, new_id
from gateway.api.sockets import CLOSED_BY_API, GOING_AWAY, MAX_MESSAGE_BYTES, BufferFull, Socket
from gateway.configuration import Configuration
from gateway.console.event_stream import Feed
from gateway.console.fault_injection import Faults
from gateway.functions.environments import Environments, FunctionError
from gateway.log import log_event, log_line, printable

STAGE = "ws"
CONNECT_AUTHORIZER = "connect_authorizer"  # a deployment attaches this function to `$connect`
CARD = "card"  # the query parameter by which the console knows its connections again
MESSAGES_AT_ONCE = 32  # handlers of one connection; more wait in the client's socket
CONNECTION_ID = re.compile(r"[A-Za-z0-9_-]{15}=")


class WebSocketApi:
    """Connections, and the functions that hear of them."""

    def __init__(
        self,
        environments: Environments,
        configuration: Configuration,
        domain_name: str,
        port: int,
        feed: Feed,
        faults: Faults,
    ) -> None:
        self._environments = environments
        self._configuration = configuration
        self._domain_name = domain_name
        self._port = port
        self._feed = feed
        self._faults = faults
        self._sockets: dict[str, Socket] = {}

    @property
    def open_count(self) -> int:
        """How many connections are open."""
        return len(self._sockets)

    def cut_off(self, connection_id: str) -> bool:
        """Close a connection as API Gateway closes one that is too old; whether there is one."""
        socket = self._sockets.get(connection_id)
        if socket is not None:
            socket.close(*GOING_AWAY)
        return socket is not None

    def close_all(self) -> None:
        """The gateway stops."""
        for socket in self._sockets.values():
            socket.close(*GOING_AWAY)

    # The client's side

    async def endpoint(self, websocket: WebSocket) -> None:
        """One connection, from its handshake to its end, or until the gateway stops and waits no
        longer for functions."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._serve(websocket)

    async def _serve(self, websocket: WebSocket) -> None:
        context = WebSocketContext(
            stage=STAGE,
            domain_name=self._domain_name,
            port=self._port,
            headers=canonical_headers(websocket.scope["headers"]),
            query=websocket.url.query,
            source_ip=websocket.client.host if websocket.client else "127.0.0.1",
        )
        try:
            subprotocol = await self._handshake(context)
        except Refused as refusal:
            log_event("CONNECT", context, str(refusal.status))
            self._tell_feed("connect", context, status=refusal.status, card=_card(context))
            await websocket.send_denial_response(_refusal(refusal.status, context))
            return
        await websocket.accept(subprotocol=subprotocol)
        log_event("CONNECT", context, "101")
        socket = Socket(
            websocket,
            context,
            self._configuration.idle_timeout,
            self._configuration.max_duration,
        )
        self._sockets[context.connection_id] = socket
        self._tell_feed("connect", context, status=101, card=_card(context))
        writer = asyncio.create_task(socket.write())
        code, reason = 1006, "Connection closed abnormally"
        try:
            code, reason = await self._converse(websocket, socket)
        finally:
            self._sockets.pop(context.connection_id, None)
            socket.release()
            writer.cancel()
            self._faults.deliveries.pop(context.connection_id, None)
            log_event("DISCONNECT", context, f"{code} {printable(reason)}")
            self._tell_feed("disconnect", context, code=code, reason=reason)
            await self._tell("$disconnect", context.disconnect(code, reason))

    async def _handshake(self, context: WebSocketContext) -> str | None:
        """The subprotocol that the `$connect` function chose. Raises Refused."""
        if self._faults.handshake is not None:
            raise Refused(self._faults.handshake)
        declared = self._environments.declared
        if CONNECT_AUTHORIZER in declared["functions"]:
            context.authorizer = await authorize(
                self._environments, CONNECT_AUTHORIZER, context.authorize()
            )
        if "$connect" not in declared["websocket"]:
            return None
        try:
            answer = await self._environments.invoke(
                declared["websocket"]["$connect"], context.connect()
            )
            status = int(answer["statusCode"])
        except (FunctionError, KeyError, TypeError, ValueError) as error:
            raise Refused(502) from error
        if not 200 <= status < 300:
            raise Refused(status)
        headers = {name.lower(): value for name, value in (answer.get("headers") or {}).items()}
        return headers.get("sec-websocket-protocol")

    async def _converse(self, websocket: WebSocket, socket: Socket) -> tuple[int, str]:
        """Hand each message to its function until the connection ends; how it ended."""
        turns = asyncio.Semaphore(MESSAGES_AT_ONCE)
        async with asyncio.TaskGroup() as handlers:
            while True:
                received = await websocket.receive()
                socket.heard()
                if received["type"] == "websocket.disconnect":
                    return socket.closing or _ending(received)
                if received.get("text") is None:
                    socket.close(1003, "Binary frames are not supported")
                    continue
                if socket.closing is not None:
                    continue
                await turns.acquire()
                handler = handlers.create_task(self._handle(socket, received["text"]))
                handler.add_done_callback(lambda _: turns.release())

    async def _handle(self, socket: Socket, text: str) -> None:
        event = socket.context.message(text)
        request_id = event["requestContext"]["requestId"]
        log_event("MESSAGE", socket.context, f"{len(text)} characters")
        error = None
        function = self._environments.declared["websocket"].get("$default")
        if function is None:
            error = "Forbidden"
        else:
            try:
                async with asyncio.timeout(self._configuration.integration_timeout):
                    await self._environments.invoke(function, event)
            except TimeoutError:
                error = "Endpoint request timed out"
            except FunctionError as failure:
                log_event("ERROR", socket.context, str(failure))
                error = "Internal server error"
        if error is not None:
            body = {
                "message": error,
                "connectionId": socket.context.connection_id,
                "requestId": request_id,
            }
            if socket.closing is None:
                socket.send(json.dumps(body))

    async def _tell(self, route_key: str, event: dict[str, Any]) -> None:
        function = self._environments.declared["websocket"].get(route_key)
        if function is not None:
            try:
                await self._environments.invoke(function, event)
            except FunctionError as failure:
                log_line("ERROR", f"{route_key} failed: {failure}")

    # @connections

    async def connections(self, request: Request) -> Response:
        """POST, GET or DELETE on one connection."""
        connection_id = request.path_params["connection_id"]
        if request.path_params.get("stage", STAGE) != STAGE:
            return _error(403, "ForbiddenException", "Forbidden")
        if not CONNECTION_ID.fullmatch(connection_id):
            return _error(400, "BadRequestException", f"Invalid connectionId: {connection_id}")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_MESSAGE_BYTES:
                return _error(413, "PayloadTooLargeException", "Message too long")
        socket = self._sockets.get(connection_id)
        if socket is None or socket.closing is not None:
            return _error(410, "GoneException")
        if request.method == "POST":
            return await self._post(socket, body)
        if request.method == "DELETE":
            socket.close(*CLOSED_BY_API)
            return _answer(204)
        return _answer(200, json.dumps(_described(socket)).encode())

    async def _post(self, socket: Socket, body: bytes) -> Response:
        fault = self._faults.of(socket.context.connection_id)
        if fault.delay_ms:
            await asyncio.sleep(fault.delay_ms / 1000)
        response = FAULTS[fault.status]() if fault.status else self._send(socket, body)
        self._tell_feed("delivery", socket.context, status=response.status_code, bytes=len(body))
        return response

    def _send(self, socket: Socket, body: bytes) -> Response:
        if socket.closing is not None:  # while it was delayed
            return _error(410, "GoneException")
        try:
            socket.send(body.decode("utf-8", "replace"))
        except BufferFull:
            return _error(429, "LimitExceededException", "The client reads too slowly")
        return _answer(200)

    def _tell_feed(self, kind: str, context: WebSocketContext, **details: Any) -> None:
        self._feed.tell(
            kind,
            connectionId=context.connection_id,
            connections=self.open_count,
            **details,
        )


def _card(context: WebSocketContext) -> str | None:
    return dict(parse_qsl(context.query)).get(CARD)


def _ending(received: Any) -> tuple[int, str]:
    """How API Gateway words the end of a connection that the client ended."""
    if "reason" not in received:  # the connection broke: no close frame came
        return 1006, "Connection closed abnormally"
    code = received.get("code") or 1005
    if code == 1005:
        return code, "Client-side close frame status not set"
    return code, received["reason"] or ""


def _refusal(status: int, context: WebSocketContext) -> Response:
    body = {
        "message": "Internal server error" if status in (500, 502) else HTTPStatus(status).phrase,
        "connectionId": context.connection_id,
        "requestId": new_id(),
    }
    return Response(json.dumps(body), status, media_type="application/json")


def _described(socket: Socket) -> dict[str, Any]:
    """GetConnection's answer: lower camel case, times in ISO 8601 with milliseconds."""
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


def _answer(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Response:
    return Response(
        body,
        status,
        headers={"x-amzn-RequestId": new_id(), **(headers or {})},
        media_type="application/json",
    )


def _error(status: int, error_type: str, message: str | None = None) -> Response:
    body = b"" if message is None else json.dumps({"message": message}).encode()
    return _answer(status, body, {"x-amzn-ErrorType": error_type})


FAULTS = {
    403: lambda: _error(403, "ForbiddenException", "Forbidden"),
    410: lambda: _error(410, "GoneException"),
    429: lambda: _error(429, "LimitExceededException", "Too many requests"),
    500: lambda: _error(500, "InternalServerErrorException", "Internal server error"),
}
