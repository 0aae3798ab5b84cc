"""The WebSocket API: runs the app's functions at a handshake, for each message and at the end."""

import asyncio
import contextlib
import json
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.websockets import WebSocket

from gateway.api.authorization import Refused, authorize
from gateway.api.event_stream import EventStream
from gateway.api.events import WEBSOCKET_STAGE, WebSocketContext, canonical_headers, new_id
from gateway.api.fault_injection import FaultInjection
from gateway.api.mock_routes import MockError, MockRoute, MockRoutes
from gateway.api.sockets import BufferFull, Socket, Sockets
from gateway.configuration import Configuration
from gateway.functions.environments import Environments
from gateway.functions.execution_environment import FunctionError
from gateway.log import log_line, printable

CONNECT_AUTHORIZER = "connect_authorizer"
"""The function that a deployment attaches to `$connect` as its authorizer."""
CARD = "card"
"""The query parameter by which the console recognizes its own connections."""
MAX_PARALLEL_MESSAGES = 32
"""The number of handlers that run for one connection; further messages wait in its socket."""
ABNORMAL_CLOSURE = (1006, "Connection closed abnormally")


class WebSocketApi:
    """Serves connections with the app's WebSocket functions."""

    def __init__(
        self,
        environments: Environments,
        configuration: Configuration,
        *,
        domain_name: str,
        port: int,
        sockets: Sockets,
        event_stream: EventStream,
        faults: FaultInjection,
    ) -> None:
        self._environments = environments
        self._configuration = configuration
        self._mock_routes = MockRoutes(configuration.mock_routes)
        self._domain_name = domain_name
        self._port = port
        self._sockets = sockets
        self._event_stream = event_stream
        self._faults = faults

    async def endpoint(self, websocket: WebSocket) -> None:
        """Serve one connection from its handshake to its end.

        A gateway that stops cancels this if a function keeps it waiting.
        """
        with contextlib.suppress(asyncio.CancelledError):
            await self._serve(websocket)

    async def _serve(self, websocket: WebSocket) -> None:
        context = WebSocketContext(
            stage=WEBSOCKET_STAGE,
            domain_name=self._domain_name,
            port=self._port,
            headers=canonical_headers(websocket.scope["headers"]),
            query=websocket.url.query,
            source_ip=websocket.client.host if websocket.client else "127.0.0.1",
        )
        try:
            subprotocol = await self._handshake(context)
        except Refused as refusal:
            _log("CONNECT", context, str(refusal.status))
            self._notify("connect", context, status=refusal.status, card=_card(context))
            await websocket.send_denial_response(_refusal_response(refusal.status, context))
            return
        await websocket.accept(subprotocol=subprotocol)
        _log("CONNECT", context, "101")
        socket = Socket(
            websocket,
            context,
            idle_timeout=self._configuration.idle_timeout,
            max_duration=self._configuration.max_duration,
            closing_timeout=self._configuration.closing_timeout,
        )
        self._sockets.add(socket)
        self._notify("connect", context, status=101, card=_card(context))
        await self._run(websocket, socket)

    async def _run(self, websocket: WebSocket, socket: Socket) -> None:
        """Exchange messages until the connection ends, then run the `$disconnect` function."""
        context = socket.context
        writer = asyncio.create_task(socket.write())
        code, reason = ABNORMAL_CLOSURE
        try:
            code, reason = await self._receive(websocket, socket)
        finally:
            self._sockets.remove(socket)
            socket.cancel_timer()
            writer.cancel()
            self._faults.deliveries.pop(context.connection_id, None)
            _log("DISCONNECT", context, f"{code} {printable(reason)}")
            self._notify("disconnect", context, code=code, reason=reason)
            await self._invoke_disconnect(context.disconnect(code, reason))

    async def _handshake(self, context: WebSocketContext) -> str | None:
        """Run the authorizer and the `$connect` function.

        Returns the subprotocol that the function chose. Raises Refused.
        """
        if self._faults.handshake_status is not None:
            raise Refused(self._faults.handshake_status)
        declared = self._environments.declared
        if CONNECT_AUTHORIZER in declared["functions"]:
            context.authorizer = await authorize(
                self._environments, CONNECT_AUTHORIZER, context.authorize()
            )
        if "$connect" not in declared["websocket"]:
            return None
        try:
            result = await self._environments.invoke(
                declared["websocket"]["$connect"], context.connect()
            )
            status = int(result["statusCode"])
        except (FunctionError, KeyError, TypeError, ValueError) as error:
            raise Refused(502) from error
        if not 200 <= status < 300:
            raise Refused(status)
        headers = {name.lower(): value for name, value in (result.get("headers") or {}).items()}
        return headers.get("sec-websocket-protocol")

    async def _receive(self, websocket: WebSocket, socket: Socket) -> tuple[int, str]:
        """Hand each message to its function. Returns the code and reason of the end."""
        free = asyncio.Semaphore(MAX_PARALLEL_MESSAGES)
        async with asyncio.TaskGroup() as handlers:
            while True:
                received = await websocket.receive()
                socket.record_activity()
                if received["type"] == "websocket.disconnect":
                    return socket.closing or _client_closure(received)
                if received.get("text") is None:
                    socket.close(1003, "Binary frames are not supported")
                    continue
                if socket.closing is not None:
                    continue
                await free.acquire()
                handler = handlers.create_task(self._handle(socket, received["text"]))
                handler.add_done_callback(lambda _: free.release())

    async def _handle(self, socket: Socket, text: str) -> None:
        """Run the function of a message, or answer it from a MOCK route's templates.

        If that fails, the client gets API Gateway's error frame.
        """
        route = self._mock_routes.of(text)
        event = socket.context.message(text, route.key if route else "$default")
        _log("MESSAGE", socket.context, f"{len(text)} characters")
        if route is None:
            error = await self._invoke_default(socket.context, event)
        else:
            error = _answer(route, socket, event)
        if error is not None:
            frame = {
                "message": error,
                "connectionId": socket.context.connection_id,
                "requestId": event["requestContext"]["requestId"],
            }
            _send(socket, json.dumps(frame))

    async def _invoke_default(self, context: WebSocketContext, event: dict[str, Any]) -> str | None:
        """Invoke the `$default` function. Returns API Gateway's error text; None on success."""
        function = self._environments.declared["websocket"].get("$default")
        if function is None:
            return "Forbidden"
        try:
            async with asyncio.timeout(self._configuration.integration_timeout):
                await self._environments.invoke(function, event)
        except TimeoutError:
            return "Endpoint request timed out"
        except FunctionError as error:
            _log("ERROR", context, str(error))
            return "Internal server error"
        return None

    async def _invoke_disconnect(self, event: dict[str, Any]) -> None:
        function = self._environments.declared["websocket"].get("$disconnect")
        if function is not None:
            try:
                await self._environments.invoke(function, event)
            except FunctionError as error:
                log_line("ERROR", f"$disconnect failed: {error}")

    def _notify(self, kind: str, context: WebSocketContext, **details: Any) -> None:
        self._event_stream.notify(
            kind,
            connectionId=context.connection_id,
            connections=len(self._sockets),
            **details,
        )


def _answer(route: MockRoute, socket: Socket, event: dict[str, Any]) -> str | None:
    """Send a MOCK route's answer. Returns API Gateway's error text; None on success."""
    try:
        answer = route.answer(event["body"], event["requestContext"])
    except MockError as error:
        _log("ERROR", socket.context, f"route {route.key}: {error}")
        return "Internal server error"
    if answer is not None:
        _send(socket, answer)
    return None


def _send(socket: Socket, text: str) -> None:
    """Send what API Gateway itself answers. A client that reads too slowly misses it."""
    if socket.closing is None:
        with contextlib.suppress(BufferFull):
            socket.send(text)


def _log(kind: str, context: WebSocketContext, text: str) -> None:
    """Log a line such as `CONNECT     BFaT_fALIAMCKug=  alice  101`."""
    principal = printable((context.authorizer or {}).get("principalId", "-"))
    log_line(kind, f"{context.connection_id}  {principal}  {text}")


def _card(context: WebSocketContext) -> str | None:
    return dict(parse_qsl(context.query)).get(CARD)


def _client_closure(received: Any) -> tuple[int, str]:
    """Return the code and reason that API Gateway reports when the client ends a connection."""
    if "reason" not in received:  # the connection broke without a close frame
        return ABNORMAL_CLOSURE
    code = received.get("code") or 1005
    if code == 1005:
        return code, "Client-side close frame status not set"
    return code, received["reason"] or ""


def _refusal_response(status: int, context: WebSocketContext) -> Response:
    body = {
        "message": "Internal server error" if status in (500, 502) else HTTPStatus(status).phrase,
        "connectionId": context.connection_id,
        "requestId": new_id(),
    }
    return Response(json.dumps(body), status, media_type="application/json")
