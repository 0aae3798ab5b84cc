"""The whole path of a message: from `POST /messages` in the handler to the last recipient.

    .venv/bin/python -m bench                # runs this among the others, since it needs the stub

The handler is called as Lambda calls it. It reads the connections from the emulator (which is
slower than DynamoDB and shares the stub's core) and delivers to the stub, 10 ms away.

A row has the first request (`cold ms`), the median of the following ones (`ms`) and their
deliveries per second. The shares say how two more requests, with a clock around each part, spent
their processor time.
"""

import asyncio
import importlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import boto3

from bench.quick_mode import full_or_quick
from bench.quiet import stdout_discarded
from bench.stub import CLIENT_CORE, STUB_CORE, Stub, pin
from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import now_ms
from chalicelib.delivery.frames import Framer
from chalicelib.delivery.http import Transport
from chalicelib.delivery.sigv4 import RequestSigner
from chalicelib.settings import Settings
from chalicelib.store.audience import Audiences
from chalicelib.store.connections import Connections
from chalicelib.store.items import Connection
from gateway.api.events import RestRequest
from gateway.aws.emulator import emulated_aws
from gateway.functions.runtime import LambdaContext

ROUNDS = full_or_quick(5, 1)
LATENCY_MS = 10
USERS = [f"user-{number}" for number in range(100)]
PER_USER = 10
OTHER_USERS = full_or_quick(9000, 1000)
MAX_BATCH_WRITE = 25
MASTER_KEY = {"kty": "oct", "kid": "bench", "k": "A" * 43}

PARTS = (
    ("framing", Framer, "__init__"),
    ("framing", Framer, "_frames"),
    ("signing", RequestSigner, "request"),
    ("sending", Transport, "start"),
    ("sending", Transport, "poll"),
)


def main(stub: Stub) -> None:
    """Measure a message to 100 users with ten connections each, then to all of 1,000 and of 10,000
    connections; the first and the last again with encryption for each user."""
    pin(STUB_CORE)  # the emulator inherits it
    loop = asyncio.new_event_loop()
    emulator = emulated_aws({"HERALD_FANOUT_QUEUE_URL": ""})  # no queue: POST delivers everything
    variables = loop.run_until_complete(emulator.__aenter__())
    pin(CLIENT_CORE)
    try:
        os.environ.update(variables)
        os.environ["AWS_CA_BUNDLE"] = str(stub.authority)
        os.environ["HERALD_JWT_SECRET"] = "x" * 32
        os.environ["HERALD_MESSAGE_RATE"] = os.environ["HERALD_MESSAGE_BURST"] = "1000000"
        os.environ["HERALD_FANOUT_RATE"] = "0"  # as fast as it can
        os.environ["HERALD_ENCRYPTION_KEYS"] = json.dumps({"keys": [MASTER_KEY]})
        _measure(stub)
    finally:
        loop.run_until_complete(emulator.__aexit__(None, None, None))
        loop.close()


def _measure(stub: Stub) -> None:
    handler = importlib.import_module("app")
    logging.getLogger("herald").setLevel(logging.WARNING)
    endpoint = stub.endpoint(LATENCY_MS)
    _connect_users(handler.herald().connections, endpoint)
    print(f"\nFrom POST in the handler to the last recipient, {LATENCY_MS} ms away")
    print(f"{'audience':34} {'cold ms':>8} {'ms':>8} {'per s':>8}   shares of the processor time")
    _row(handler, {"users": USERS}, "100 users, 10 connections each")
    _row(handler, {"users": USERS}, "the same, encrypted", encrypt=True)
    _row(handler, {"all": True}, "all of 1,000")
    _connect_more(handler.herald().connections, endpoint)
    _row(handler, {"all": True}, f"all of {1000 + OTHER_USERS:,}")
    _row(handler, {"all": True}, "the same, encrypted", encrypt=True)


def _connect_users(connections: Connections, endpoint: str) -> None:
    for user in USERS:
        for number in range(PER_USER):
            connections.open(_connection(f"{user}-{number}", user, endpoint))


def _connect_more(connections: Connections, endpoint: str) -> None:
    """Add connections of other users to the roster alone: a message to all reads nothing else."""
    client = boto3.client("dynamodb")
    table = Settings.from_environ(os.environ).groups_table
    for start in range(0, OTHER_USERS, MAX_BATCH_WRITE):
        items = [
            _connection(f"other-{number}", f"other-{number}", endpoint).roster_entry()
            for number in range(start, start + MAX_BATCH_WRITE)
        ]
        client.batch_write_item(
            RequestItems={table: [{"PutRequest": {"Item": item}} for item in items]}
        )


def _connection(connection_id: str, user: str, endpoint: str) -> Connection:
    principal = Principal(user, expires_at=int(time.time()) + 7200)
    now = now_ms()
    return Connection(connection_id, principal, endpoint, connected_at=now, timestamp=now)


def _row(handler: Any, to: dict[str, Any], title: str, *, encrypt: bool = False) -> None:
    body = json.dumps({"to": to, "data": "x" * 100, "encrypt": encrypt})
    with stdout_discarded():
        cold, *warm = [_post(handler, body) for _ in range(1 + ROUNDS)]
        with _clocks() as spent:
            used = time.process_time()
            for _ in range(2):
                _post(handler, body)
            used = time.process_time() - used
    seconds = statistics.median(seconds for seconds, _ in warm)
    delivered = warm[0][1]
    spent["the rest"] = used - sum(spent.values())
    shares = ", ".join(f"{part} {time / used:.0%}" for part, time in spent.items())
    print(
        f"{title:34} {cold[0] * 1000:>8.1f} {seconds * 1000:>8.1f} {delivered / seconds:>8,.0f}"
        f"   {shares}",
        flush=True,
    )


def _post(handler: Any, body: str) -> tuple[float, int]:
    """Post a message. Return the seconds that it took, and the number of deliveries.

    Raises SystemExit unless everybody was reached.
    """
    request = RestRequest(
        method="POST",
        path="/messages",
        resource="/messages",
        path_parameters={},
        query="",
        headers=[("Content-Type", "application/json")],
        body=body.encode(),
        source_ip="127.0.0.1",
        domain_name="bench",
        port=443,
    )
    principal = Principal(
        "bench",
        expires_at=int(time.time()) + 600,
        scopes=frozenset({Scope.MESSAGES_SEND, Scope.MESSAGES_BROADCAST}),
    )
    event = request.proxy({"principalId": "bench", **principal.to_context()}, binary_types=[])
    started = time.perf_counter()
    answer = handler.app(event, LambdaContext("api_handler", "bench", 30.0))
    seconds = time.perf_counter() - started
    [report] = json.loads(answer["body"])["messages"]
    if report["delivered"] != report["recipients"]:
        raise SystemExit(f"Not everybody was reached: {report}")
    return seconds, report["delivered"]


@contextmanager
def _clocks() -> Iterator[dict[str, float]]:
    """Measure the processor time of each part while the context lasts, the clocks' own included."""
    spent: dict[str, float] = {}
    with ExitStack() as stack:
        pages = _timed_pages(Audiences.pages, spent)
        stack.enter_context(mock.patch.object(Audiences, "pages", pages))
        for part, owner, name in PARTS:
            timed = _timed(getattr(owner, name), part, spent)
            stack.enter_context(mock.patch.object(owner, name, timed))
        yield spent


def _timed_pages(pages: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    spent["reading"] = 0.0

    def call(*arguments: Any) -> Iterator[Any]:
        next_page = _timed(pages(*arguments).__next__, "reading", spent)
        while True:
            try:
                page = next_page()
            except StopIteration:
                return
            yield page

    return call


def _timed(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    spent.setdefault(part, 0.0)

    def call(*arguments: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments)
        finally:
            spent[part] += time.thread_time() - started

    return call
