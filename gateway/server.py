"""The gateway as a whole: its parts are composed, started, reloaded and stopped here."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import PythonFilter, awatch

from gateway.api.connections import ConnectionsApi
from gateway.api.event_stream import EventStream
from gateway.api.events import WEBSOCKET_STAGE
from gateway.api.fault_injection import FaultInjection
from gateway.api.rest import RestApi
from gateway.api.routing import asgi_app, only_for
from gateway.api.sockets import Sockets
from gateway.api.uvicorn_server import Server, listen, uvicorn_config
from gateway.api.websocket import WebSocketApi
from gateway.aws.emulator import client, emulated_aws
from gateway.aws.signatures import Credentials
from gateway.aws.variables import MANAGEMENT_ENDPOINT, credentials_in
from gateway.configuration import Configuration
from gateway.console.routes import Console
from gateway.functions import execution_environment
from gateway.functions.environments import Environments
from gateway.functions.execution_environment import FunctionError
from gateway.functions.queues import run_queues
from gateway.functions.schedules import run_schedules
from gateway.local_hosts import LocalHosts, authority
from gateway.log import log_line
from infra.stage import TABLES

SHARED_VARIABLES = {MANAGEMENT_ENDPOINT, *TABLES}
"""The variables that, with the emulator's, lead an app to what is behind the gateway."""
LOOPBACK_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104
"""The address at which functions reach a gateway that listens on one of these hosts."""
CLOSE_FRAMES_SECONDS = 0.05
"""The time for close frames to be sent before the server closes the connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A gateway that serves.

    The URLs don't end in a slash. `aws` leads an SDK to the emulated AWS; `variables` lead another
    process of the app to all that is behind this gateway.
    """

    http: str
    websocket: str
    management: str
    aws: Mapping[str, str]
    port: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def gateway(configuration: Configuration) -> AsyncIterator[Running]:
    """Run the gateway, and everything behind it, while the context lasts.

    Raises OSError if the port is in use, ConfigurationError if HOST or PORT can't be used for
    another reason, and FunctionError if the app can't be imported.
    """
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(listen(configuration))
        port = listener.getsockname()[1]
        execution_environment.prepare()
        aws = await stack.enter_async_context(emulated_aws(configuration.variables))
        local_host = LOOPBACK_ADDRESSES.get(configuration.host, configuration.host)
        management = f"http://{authority(local_host, port)}/{WEBSOCKET_STAGE}"
        variables = {MANAGEMENT_ENDPOINT: management, **configuration.variables, **aws}
        environments = Environments(
            configuration.project,
            variables,
            concurrency=configuration.concurrency,
            function_timeout=configuration.function_timeout,
        )
        stack.push_async_callback(environments.stop)
        await environments.start()
        serving = _serving(configuration, environments, listener, credentials_in(aws))
        await stack.enter_async_context(serving)
        for work in (
            run_schedules(environments, configuration.schedule_period),
            run_queues(environments, client("sqs", aws), aws["AWS_ENDPOINT_URL"]),
            _reload_on_change(environments, configuration.project),
        ):
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        domain_name = authority(configuration.host, port)
        yield Running(
            http=f"http://{domain_name}",
            websocket=f"ws://{domain_name}/{WEBSOCKET_STAGE}",
            management=management,
            aws=aws,
            port=port,
            variables={
                name: variables[name] for name in variables.keys() & SHARED_VARIABLES | aws.keys()
            },
        )


@contextlib.asynccontextmanager
async def _serving(
    configuration: Configuration,
    environments: Environments,
    listener: socket.socket,
    credentials: Credentials,
) -> AsyncIterator[None]:
    """Serve HTTP and WebSockets on `listener` while the context lasts.

    `credentials` sign the requests to `@connections`.
    """
    port = listener.getsockname()[1]
    domain_name = authority(configuration.host, port)
    sockets, event_stream, faults = Sockets(), EventStream(), FaultInjection()
    app = asgi_app(
        WebSocketApi(
            environments,
            configuration,
            domain_name=domain_name,
            port=port,
            sockets=sockets,
            event_stream=event_stream,
            faults=faults,
        ),
        ConnectionsApi(sockets, credentials=credentials, event_stream=event_stream, faults=faults),
        RestApi(environments, domain_name=domain_name, port=port, event_stream=event_stream),
        Console(configuration, sockets, event_stream=event_stream, faults=faults).routes,
    )
    hosts = LocalHosts({configuration.host, *configuration.allowed_hosts})
    server = Server(uvicorn_config(only_for(hosts, app), stop_timeout=configuration.stop_timeout))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        event_stream.end()
        sockets.close_all()
        await asyncio.sleep(CLOSE_FRAMES_SECONDS)
        server.should_exit = True
        await serving


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait until it has cleaned up; it may just have started a process."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _reload_on_change(environments: Environments, project: Path) -> None:
    """Replace the execution environments whenever the app's code changes."""
    paths = [path for path in (project / "app.py", project / "chalicelib") if path.exists()]
    async for changes in awatch(*paths, watch_filter=PythonFilter()):
        names = sorted({path.rpartition("/")[2] for _, path in changes})
        try:
            await environments.reload()
        except FunctionError as error:
            log_line("ERROR", f"the app can't be imported: {error.cause}\n{error.trace}")
        else:
            log_line("RELOAD", ", ".join(names))
