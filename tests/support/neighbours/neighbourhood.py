"""A Herald behind AWS's limits; these and its own limits are scaled down by the same factor."""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from gateway.aws.emulator import client
from gateway.configuration import configuration
from gateway.server import Running, gateway
from gateway.tokens import token
from tests.support.limits.buckets import AWS_LIMITS, Limits
from tests.support.limits.proxy import Control, limiting_proxy

LOUD_TENANT = "loud-tenant"
QUIET_TENANT = "quiet-tenant"
SCOPE = "ws:connect messages:send messages:broadcast"
SECRET = "a-secret-for-the-tests-of-at-least-32-bytes"
FRAME_BYTES = 1024
"""The size of a frame, instead of 32 KB, so that their number is what limits, not this machine."""
SETTLED_SECONDS = 1.0  # without a call
MAX_SETTLE_SECONDS = 60.0
START_SECONDS = 60.0
PATIENCE_SECONDS = 35.0  # longer than API Gateway waits for a function


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The factor by which Herald's and AWS's limits are divided, and AWS's limits before that."""

    factor: float = 20
    limits: Limits = AWS_LIMITS

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Scale":
        """Read SCALE, the factor, and AWS's limits before they are scaled, such as TABLE_WRITES."""
        limits = {
            name: float(environ[name.upper()])
            for name in Limits._fields
            if environ.get(name.upper())
        }
        factor = float(environ.get("SCALE") or cls.factor)
        return cls(factor=factor, limits=AWS_LIMITS._replace(**limits))

    def settings(self) -> dict[str, str]:
        """Return Herald's rates, scaled down from their defaults."""
        rates = {
            "HERALD_MESSAGE_RATE": 20,
            "HERALD_READ_RATE": 20,
            "HERALD_CONNECT_RATE": 60,
        }
        counts = {
            "HERALD_MESSAGE_BURST": 40,
            "HERALD_READ_BURST": 40,
            "HERALD_FANOUT_RATE": 8000,
            "HERALD_INLINE_RECIPIENTS": 1000,
        }
        return {
            **{name: str(value / self.factor) for name, value in rates.items()},
            **{name: str(self.count(value)) for name, value in counts.items()},
        }

    def count(self, value: float) -> int:
        """Return a number of things, scaled down."""
        return max(1, round(value / self.factor))


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """A running Herald, and the proxy before AWS's services."""

    running: Running
    proxy: Control
    scale: Scale

    def http(self) -> httpx.AsyncClient:
        """Return a client of the REST API, which closes idle sockets before the gateway does."""
        return httpx.AsyncClient(
            base_url=self.running.http,
            timeout=PATIENCE_SECONDS,
            limits=httpx.Limits(keepalive_expiry=2.0),
        )

    def headers(self, user: str, tenant: str, scope: str = SCOPE) -> dict[str, str]:
        """Return the headers of a user's requests."""
        return {
            "Authorization": f"Bearer {self._token(user, tenant, scope)}",
            "Content-Type": "application/json",
        }

    def connect(self, user: str, tenant: str, **claims: Any) -> connect:
        """Return a WebSocket of a user, to be opened by `async with` or `await`."""
        headers = {"Authorization": f"Bearer {self._token(user, tenant, SCOPE, **claims)}"}
        return connect(
            self.running.websocket,
            additional_headers=headers,
            ping_interval=None,
            compression=None,
            open_timeout=START_SECONDS,
            close_timeout=1,
        )

    def _token(self, user: str, tenant: str, scope: str, **claims: Any) -> str:
        secret = {"HERALD_JWT_SECRET": SECRET}
        return token(secret, user, scope, tenant=tenant, **claims)

    def connection_ids(self, tenant: str) -> set[str]:
        """Return the ids of all connections of a tenant."""
        with closing(client("dynamodb", self.running.aws)) as tables:
            items = tables.scan(
                TableName="herald-connections",
                FilterExpression="tenant = :tenant",
                ExpressionAttributeValues={":tenant": {"S": tenant}},
            )["Items"]
        return {item["connectionId"]["S"] for item in items}

    async def settle(self) -> None:
        """Wait until Herald is at rest; then fill the buckets, and begin to count."""
        end = time.monotonic() + MAX_SETTLE_SECONDS
        seen = -1
        while seen != (seen := await asyncio.to_thread(self._calls)):
            assert time.monotonic() < end, "Herald never came to rest"
            await asyncio.sleep(SETTLED_SECONDS)
        await asyncio.to_thread(self.proxy.begin)

    def _calls(self) -> int:
        counts = self.proxy.counts()
        of_owners = (sum(calls.values()) for calls in counts.calls.values())
        return sum(of_owners) + sum(counts.sent.values()) + sum(counts.refused.values())


async def drain(socket: ClientConnection) -> None:
    """Read a socket to its end."""
    async for _ in socket:
        pass


@contextmanager
def neighbourhood(scale: Scale) -> Iterator[Neighbourhood]:
    """Run a Herald in which nobody is connected yet."""
    with ExitStack() as stack:
        owners = [QUIET_TENANT, LOUD_TENANT]
        proxy = stack.enter_context(limiting_proxy(scale.limits.scaled(scale.factor), owners))
        environment = {
            "PORT": "0",
            "HERALD_JWT_SECRET": SECRET,
            "AWS_ENDPOINT_URL_DYNAMODB": proxy.dynamodb,
            "HERALD_MANAGEMENT_ENDPOINT": f"{proxy.connections}/ws",
            "HERALD_FRAME_BYTES": str(FRAME_BYTES),
            "GATEWAY_SCHEDULE_SECONDS": "86400",  # no sweep
            **scale.settings(),
        }
        running = stack.enter_context(_served_apart(environment))
        proxy.lead_to(running)
        yield Neighbourhood(running=running, proxy=proxy, scale=scale)


@contextmanager
def _served_apart(environment: dict[str, str]) -> Iterator[Running]:
    """Run a gateway in a process of its own, which doesn't share the clients' lock."""
    spawning = multiprocessing.get_context("spawn")
    channel, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(theirs, environment))
    process.start()
    theirs.close()
    try:
        assert channel.poll(START_SECONDS), "the gateway did not start"
        yield channel.recv()
    finally:
        channel.close()
        process.join()


def _serve(channel: Connection, environment: dict[str, str]) -> None:
    """Serve until the other side closes the channel; discard what the functions print."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    async def serving() -> None:
        async with gateway(configuration(environment)) as running:
            channel.send(running)
            await asyncio.to_thread(channel.poll, None)

    asyncio.run(serving())
