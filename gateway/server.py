"""The gateway as a server: its parts put together, started, reloaded and stopped."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from watchfiles import PythonFilter, awatch
from websockets import http11
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from gateway.api.rest import RestApi
from gateway.api.sockets import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES
from gateway.api.websocket import STAGE, WebSocketApi
from gateway.aws.emulator import emulated_aws
from gateway.aws.variables import MANAGEMENT_ENDPOINT
from gateway.configuration import Configuration, ConfigurationError
from gateway.console.event_stream import Feed
from gateway.console.fault_injection import Faults
from gateway.console.routes import Console
from gateway.functions.environments import Environments, FunctionError
from gateway.functions.queues import run_queues
from gateway.functions.schedules import run_schedules
from gateway.log import log_line
from infra.stage import TABLES

HTTP_METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
BEHIND = {MANAGEMENT_ENDPOINT, *TABLES}
"""Where the functions read what else is behind the gateway, beside AWS."""
WEBSOCKET_PATHS = (f"/{STAGE}", f"/{STAGE}/")
"""AWS's own example has a slash at the end:
https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-how-to-call-websocket-api-wscat.html"""

LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104
"""By which address the functions reach a gateway that listens on one of these."""

STOP_SECONDS = 3
MAX_HEADER_BYTES = 10_240
"""https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html; by default the library
would refuse less than that, and a token that is too large is the authorizer's to refuse."""


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that serves. URLs have no slash at their end; `aws` leads an SDK to its AWS, and
    `variables` lead another process of the app to all that is behind this one."""

    http: str
    websocket: str
    management: str
    aws: Mapping[str, str]
    port: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)


class _Server(uvicorn.Server):
    """Leaves signals to us: a stop that was asked for is no failure."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


class _FrameProtocol(ServerProtocol):
    """Accepts a close frame between the fragments of a message (RFC 6455, section 5.4): the library
    answers 1002 to it, instead of the client's own code."""

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None  # the message stays unfinished: none is under way any more
        super().recv_frame(frame)


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """Answers a handshake that can't be read, which would wait for ever for its answer; and lets
    the application end a connection at once, as `state.abort` of its WebSocket."""

    def __init__(self, config: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.conn = _FrameProtocol(max_size=config.ws_max_size, logger=self.logger)

    def handle_connect(self, event: http11.Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # so it is no refusal
            self.scope["state"]["abort"] = self.transport.abort

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.handshake_complete = self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()


@contextlib.asynccontextmanager
async def gateway(configuration: Configuration) -> AsyncIterator[Running]:
    """Serve, with everything behind it, for as long as the context lasts.

    Raises OSError when the port is taken, ConfigurationError when HOST or PORT can't be listened on
    for another reason, and FunctionError when the app can't be imported.
    """
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(_listener(configuration))
        port = listener.getsockname()[1]
        aws = await stack.enter_async_context(emulated_aws(configuration.environment))
        here = LOCAL.get(configuration.host, configuration.host)
        management = f"http://{_authority(here, port)}/{STAGE}"
        variables = {
            MANAGEMENT_ENDPOINT: management,
            **configuration.environment,
            **aws,
        }
        environments = Environments(
            configuration.project,
            variables,
            configuration.concurrency,
            configuration.function_timeout,
        )
        stack.push_async_callback(environments.stop)
        await environments.start()
        domain_name = _authority(configuration.host, port)
        feed, faults = Feed(), Faults()
        websocket_api = WebSocketApi(environments, configuration, domain_name, port, feed, faults)
        rest_api = RestApi(environments, domain_name, port, feed)
        console = Console(configuration, websocket_api, feed, faults)
        server = _Server(_uvicorn(websocket_api, rest_api, console))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(_stop, server, serving, websocket_api, feed)
        for work in (
            run_schedules(environments, configuration.schedule),
            run_queues(environments, aws),
            _reload_on_change(environments, configuration.project),
        ):
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        yield Running(
            http=f"http://{domain_name}",
            websocket=f"ws://{domain_name}/{STAGE}",
            management=management,
            aws=aws,
            port=port,
            variables={name: variables[name] for name in variables.keys() & BEHIND | aws.keys()},
        )


def _authority(host: str, port: int) -> str:
    """https://www.rfc-editor.org/rfc/rfc3986#section-3.2"""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listener(configuration: Configuration) -> socket.socket:
    family = socket.AF_INET6 if ":" in configuration.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (configuration.host, configuration.port), family=family, backlog=4096
        )
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise
        raise ConfigurationError(_why_it_cannot_listen(configuration, error)) from error
    # Its connections inherit it. asyncio would set it, but not for sockets that it didn't make:
    # the second packet of an answer would wait 40 ms for the first one's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _why_it_cannot_listen(configuration: Configuration, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return (
            f"PORT holds {configuration.port}, which this user may not listen on; allowed: a"
            " number from 1024 to 65535, or 0 for a free port"
        )
    return (
        f"HOST holds {configuration.host!r}; allowed: an address of this machine or a name of one,"
        " such as 127.0.0.1, localhost, ::1, or 0.0.0.0 for all"
    )


def _uvicorn(websocket_api: WebSocketApi, rest_api: RestApi, console: Console) -> uvicorn.Config:
    async def websocket_only(request: Request) -> Response:
        return PlainTextResponse("Upgrade Required", 426, {"Upgrade": "websocket"})

    connections = ["POST", "GET", "DELETE"]
    app = Starlette(
        routes=[
            *(WebSocketRoute(path, websocket_api.endpoint) for path in WEBSOCKET_PATHS),
            *(Route(path, websocket_only, methods=HTTP_METHODS) for path in WEBSOCKET_PATHS),
            # As a custom domain without a base path has it, too.
            Route(
                "/@connections/{connection_id:path}", websocket_api.connections, methods=connections
            ),
            Route(
                "/{stage}/@connections/{connection_id:path}",
                websocket_api.connections,
                methods=connections,
            ),
            *console.routes,
        ]
    )
    app.router.redirect_slashes = False
    app.router.default = _rest(rest_api, app.router.not_found)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    http11.MAX_LINE_LENGTH = MAX_HEADER_BYTES
    return uvicorn.Config(
        app,
        http="httptools",
        ws=_WebSocketProtocol,
        # The library's pair is (message, frame): beyond either it closes with 1009 by itself.
        ws_max_size=(MAX_MESSAGE_BYTES, MAX_FRAME_BYTES),  # type: ignore[arg-type]
        ws_ping_interval=None,  # API Gateway doesn't ping
        ws_per_message_deflate=False,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # a client's X-Forwarded-For says nothing of where it is
        lifespan="off",
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _rest(rest_api: RestApi, not_found: ASGIApp) -> ASGIApp:
    """Everything else over HTTP, whatever its path holds: a route's pattern stops at a newline."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await not_found(scope, receive, send)
        response = await rest_api.endpoint(Request(scope, receive))
        return await response(scope, receive, send)

    return answer


def _is_news(record: logging.LogRecord) -> bool:
    """The server takes each refused handshake for an unfinished one, and says so as an error; and
    when it stops, what it doesn't wait for and has cancelled."""
    message = record.getMessage()
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        return False
    return message != "ASGI callable returned without completing handshake." and not (
        message.startswith("Cancel ")
    )


async def _stop(
    server: uvicorn.Server, serving: asyncio.Task[None], websocket_api: WebSocketApi, feed: Feed
) -> None:
    feed.close()
    websocket_api.close_all()
    await asyncio.sleep(0.05)  # the close frames go out before the server closes what is left
    server.should_exit = True
    await serving


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait until it has put away what it had: perhaps a process that starts."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _reload_on_change(environments: Environments, project: Path) -> None:
    paths = [path for path in (project / "app.py", project / "chalicelib") if path.exists()]
    async for changes in awatch(*paths, watch_filter=PythonFilter()):
        names = sorted({path.rpartition("/")[2] for _, path in changes})
        try:
            await environments.reload()
        except FunctionError as error:
            log_line("ERROR", f"the app can't be imported: {error.cause}\n{error.trace}")
        else:
            log_line("RELOAD", ", ".join(names))
