"""The whole path of a message, beside sending alone: from `POST /messages` to the last recipient.

    .venv/bin/python -m bench                # runs this among the others, since it needs the stub

The handler is called as Lambda calls it. It charges the sender, keeps the message in the history,
reads the recipients from DynamoDB, and delivers to the stub, which is 10 ms away. Sending alone
takes turns with it: the same frames to the same recipients, which are in memory already, through
the same sender.

`bench.replay` stands in for DynamoDB, since the emulator is slower. It answers writes after 5 ms,
and reads after 10 ms. The time that DynamoDB really takes is left out, and so is what comes before the
handler: API Gateway, the authorizer and Lambda. Without a queue, POST delivers everything; deployed,
more than 1,000 frames go through the queue. The stub and the replay share a core, and the handler
has another.

A row has the first request (`cold ms`), the medians of the whole path and of sending alone, and how
many times as long the whole path takes. The shares say how two more requests, with a clock around
each part, spent their processor time.
"""

import asyncio
import importlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple
from unittest import mock

from botocore.session import Session

from bench.bound import bounded
from bench.fanout import RESULTS as FANOUT_RESULTS
from bench.fanout import machine
from bench.quick_mode import full_or_quick, write_result
from bench.quiet import stdout_discarded
from bench.replay import replaying
from bench.stub import CLIENT_CORE, STUB_CORE, Stub, pin
from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import now_ms
from chalicelib.delivery.frames import Framer
from chalicelib.delivery.http import Transport
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.delivery.sender import Sender
from chalicelib.delivery.sigv4 import RequestSigner
from chalicelib.errors import Unavailable
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.audience import Audiences
from chalicelib.store.dynamodb import Store, dynamodb_client
from chalicelib.store.items import Connection
from chalicelib.store.schema import Item, Tables
from gateway.api.events import RestRequest
from gateway.aws.emulator import client, emulated_aws
from gateway.functions.runtime import LambdaContext

ROUNDS = full_or_quick(9, 1)
LATENCY_MS = 10
TRIES = 60  # the emulator may need several seconds for 10,000 items
SECONDS = 60.0
USERS = 100
PER_USER = 10
FEW, MANY = full_or_quick((1000, 10_000), (100, 1000))
GROUP = "room"
TABLES = Tables(
    "herald-connections", "herald-users", "herald-groups", "herald-messages", "herald-history"
)
MAX_BATCH_WRITE = 25
MASTER_KEY = {"kty": "oct", "kid": "bench", "k": "A" * 43}
RESULT = FANOUT_RESULTS.with_name("end_to_end.json")

PARTS = (
    ("framing", Framer, "__init__"),
    ("framing", Framer, "_frames"),
    ("signing", RequestSigner, "request"),
    ("sending", Transport, "start"),
    ("sending", Transport, "poll"),
)


class Crowd(NamedTuple):
    """A tenant, all of whose connections are in the group."""

    tenant: str
    users: int
    per_user: int = 1

    @property
    def connections(self) -> int:
        return self.users * self.per_user


HOMES, SMALL, LARGE = Crowd("homes", USERS, PER_USER), Crowd("small", FEW), Crowd("large", MANY)
NAMES = [f"user-{number}" for number in range(USERS)]

AUDIENCES = (
    (f"{USERS} users, {PER_USER} connections each", HOMES, {"users": NAMES}),
    (f"a group of {FEW:,}", SMALL, {"groups": [GROUP]}),
    (f"a group of {MANY:,}", LARGE, {"groups": [GROUP]}),
    (f"all of {FEW:,}", SMALL, {"all": True}),
    (f"all of {MANY:,}", LARGE, {"all": True}),
)


class Figures(NamedTuple):
    """The figures of one audience. `seconds` is the whole path, a median like `sending_seconds`.

    `ratio` is that of these two. The shares are of the processor time of the whole path.
    """

    audience: str
    recipients: int
    encrypted: bool
    latency_ms: int
    cold_seconds: float
    seconds: float
    sending_seconds: float
    ratio: float
    reading_share: float
    shares: dict[str, float]


@bounded(minutes=20)
def main(stub: Stub) -> None:
    """Measure each audience, then again with encryption for each user; write the figures."""
    pin(STUB_CORE)  # the emulator and the replay inherit it
    loop = asyncio.new_event_loop()
    emulator = emulated_aws({"HERALD_FANOUT_QUEUE_URL": ""})  # no queue: POST delivers everything
    variables = loop.run_until_complete(emulator.__aenter__())
    try:
        _fill(client("dynamodb", variables), stub.endpoint(LATENCY_MS))
        with replaying(variables["AWS_ENDPOINT_URL"], stub) as dynamodb:
            pin(CLIENT_CORE)
            os.environ.update({**variables, "AWS_ENDPOINT_URL": dynamodb})
            os.environ["AWS_CA_BUNDLE"] = str(stub.authority)
            os.environ["HERALD_JWT_SECRET"] = "x" * 32
            os.environ["HERALD_MESSAGE_RATE"] = os.environ["HERALD_MESSAGE_BURST"] = "1000000"
            os.environ["HERALD_FANOUT_RATE"] = "0"  # as fast as it can
            os.environ["HERALD_ENCRYPTION_KEYS"] = json.dumps({"keys": [MASTER_KEY]})
            _measure()
    finally:
        loop.run_until_complete(emulator.__aexit__(None, None, None))
        loop.close()


def _fill(dynamodb: Any, endpoint: str) -> None:
    """Store the connections, as they are once they are open and in the group."""
    now = now_ms()
    items: dict[str, list[Item]] = {TABLES.connections: [], TABLES.groups: [], TABLES.users: []}
    for crowd in (HOMES, SMALL, LARGE):
        for user in range(crowd.users):
            principal = Principal(
                f"user-{user}", now // 1000 + 7200, tenant=crowd.tenant, groups=(GROUP,)
            )
            connections = [
                Connection(
                    f"{crowd.tenant}-{user:06}-{number}=",
                    principal,
                    endpoint,
                    connected_at=now,
                    timestamp=now,
                    groups=frozenset({GROUP}),
                )
                for number in range(crowd.per_user)
            ]
            items[TABLES.connections] += [one.to_item() for one in connections]
            items[TABLES.groups] += [one.membership(GROUP) for one in connections]
            items[TABLES.groups] += [one.roster_entry() for one in connections]
            items[TABLES.users].append(
                {
                    "user": {"S": principal.key},
                    "connections": {"SS": [one.connection_id for one in connections]},
                    **{f"@{one.connection_id}": one.recipient.reach() for one in connections},
                }
            )
    for table, stored in items.items():
        for start in range(0, len(stored), MAX_BATCH_WRITE):
            batch = stored[start : start + MAX_BATCH_WRITE]
            requests = [{"PutRequest": {"Item": item}} for item in batch]
            dynamodb.batch_write_item(RequestItems={table: requests})


def _measure() -> None:
    handler = importlib.import_module("app")
    logging.getLogger("herald").setLevel(logging.WARNING)
    print(f"\nFrom POST to the last recipient, {LATENCY_MS} ms away, beside sending alone")
    print(
        f"{'audience':34} {'cold ms':>8} {'ms':>8} {'alone ms':>8} {'times':>6} {'per s':>8}"
        "   shares of the processor time"
    )
    with ThreadPoolExecutor() as readers:
        audiences = Audiences(Store(dynamodb_client(Session()), TABLES), readers)
        for _, crowd, to in AUDIENCES:
            _fill_replay(audiences, crowd, to)
    rows = []
    for encrypted in (False, True):
        for title, crowd, to in AUDIENCES:
            name = f"{title}, encrypted" if encrypted else title
            row = _row(handler, crowd, {"to": to, "data": "x" * 100, "encrypt": encrypted}, name)
            print(_line(row), flush=True)
            rows.append({**row._asdict(), "machine": machine()})
    write_result(RESULT, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def _fill_replay(audiences: Audiences, crowd: Crowd, to: Mapping[str, Any]) -> None:
    """Read an audience until the emulator has answered for each page, in spite of time-outs."""
    [(kind, names)] = to.items()
    audience = Audience(AudienceKind(kind), () if names is True else tuple(names))
    for _ in range(TRIES):
        with suppress(Unavailable):
            for _ in audiences.pages([audience], crowd.tenant):
                pass
            return
    raise SystemExit(f"{audience} could not be read")


def _row(handler: Any, crowd: Crowd, message: Mapping[str, Any], title: str) -> Figures:
    event = _event(crowd.tenant, json.dumps(message))
    sender: Sender = handler.herald().delivery
    whole: list[float] = []
    alone: list[float] = []
    with stdout_discarded():
        with _capturing(sender) as pages:
            cold = _post(handler, event, crowd.connections)
        for _ in range(ROUNDS):
            whole.append(_post(handler, event, crowd.connections))
            alone.append(_send(sender, pages, crowd.connections))
        with _clocks() as spent:
            used = time.process_time()
            for _ in range(2):
                _post(handler, event, crowd.connections)
            used = time.process_time() - used
    spent["the rest"] = used - sum(spent.values())
    shares = {part: round(time / used, 3) for part, time in spent.items()}
    seconds, sending_seconds = statistics.median(whole), statistics.median(alone)
    return Figures(
        title,
        crowd.connections,
        bool(message["encrypt"]),
        LATENCY_MS,
        round(cold, 4),
        round(seconds, 4),
        round(sending_seconds, 4),
        round(seconds / sending_seconds, 2),
        shares["reading"],
        shares,
    )


def _line(row: Figures) -> str:
    milliseconds = (row.cold_seconds * 1000, row.seconds * 1000, row.sending_seconds * 1000)
    return (
        f"{row.audience:34} {' '.join(f'{value:>8.1f}' for value in milliseconds)}"
        f" {row.ratio:>6.2f} {row.recipients / row.seconds:>8,.0f}"
        f"   {', '.join(f'{part} {share:.0%}' for part, share in row.shares.items())}"
    )


def _event(tenant: str, body: str) -> Any:
    """Return the event of a POST from a user of `tenant`."""
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
        expires_at=int(time.time()) + 3600,
        tenant=tenant,
        scopes=frozenset({Scope.MESSAGES_SEND, Scope.MESSAGES_BROADCAST}),
    )
    return request.proxy({"principalId": "bench", **principal.to_context()}, binary_types=[])


def _post(handler: Any, event: Any, recipients: int) -> float:
    """Post a message; return the seconds. Raises SystemExit unless everybody was reached."""
    started = time.perf_counter()
    answer = handler.app(event, LambdaContext("api_handler", "bench", SECONDS))
    seconds = time.perf_counter() - started
    reports = json.loads(answer["body"]).get("messages", [{}])
    if reports[0].get("delivered") != recipients:
        raise SystemExit(f"Not everybody was reached: {answer}")
    return seconds


def _send(sender: Sender, pages: Sequence[Sequence[Parcel]], recipients: int) -> float:
    """Send parcels; return the seconds. Raises SystemExit unless everybody was reached."""
    started = time.perf_counter()
    delivered = 0
    for outcome in sender.deliver(pages, Deadline.after(SECONDS)):
        delivered += outcome.result is Result.DELIVERED
    seconds = time.perf_counter() - started
    if delivered != recipients:
        raise SystemExit(f"{delivered} of {recipients} were delivered")
    return seconds


@contextmanager
def _capturing(sender: Sender) -> Iterator[list[Sequence[Parcel]]]:
    """Collect the pages that the sender is given while the context lasts."""
    captured: list[Sequence[Parcel]] = []
    deliver = sender.deliver

    def capture(pages: Iterable[Sequence[Parcel]], deadline: Deadline) -> Iterator[Outcome]:
        def seen() -> Iterator[Sequence[Parcel]]:
            for page in pages:
                captured.append(page)
                yield page

        return deliver(seen(), deadline)

    with mock.patch.object(sender, "deliver", capture):
        yield captured


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
