"""A Herald whose calls all go through the proxy, and checks of its tables."""

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
from websockets.exceptions import InvalidStatus

from gateway.aws.emulator import client
from gateway.aws.variables import QUEUE_URL
from gateway.configuration import PROJECT
from gateway.functions.environments import Environments
from gateway.functions.execution_environment import FunctionError
from gateway.functions.schedules import scheduled_event
from tests.faults.spoiler import AWS, CONNECTIONS, DEATHS, Plan, Spoiler, reset, spoiler, untouched
from tests.support.clients import LEAVE, Client, Socket, configured, eventually, served, token
from tests.support.queues import hide_jobs_for
from tests.support.tables import TABLES, assert_they_agree, empty, scan

INLINE = 2
LIMIT = 10  # connections of a user
LATER = PROJECT / "tests" / "apps" / "later"
RETURN_SECONDS = 2  # until the job of a dead worker comes again
DONE_SECONDS = 20.0
EARLIEST = "0" * 26  # an id before all others
EXPIRES_IN = 3600
"""Tokens are valid for longer than the eleven minutes that are skipped."""


class Functions:
    """Herald's functions with a clock that is eleven minutes ahead; the test invokes them."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._environments = Environments(LATER, variables, concurrency=1, function_timeout=60.0)
        self._wait(self._environments.start())

    def sweep(self) -> bool:
        """Run the sweep. Returns whether it succeeded."""
        try:
            self._wait(self._environments.invoke("sweep", scheduled_event("sweep")))
        except FunctionError:
            return False
        return True

    def close(self) -> None:
        self._wait(self._environments.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()


class Scene:
    """A Herald with one execution environment, so that its calls come in a fixed order."""

    def __init__(self, client: Client, spoiling: Spoiler, later: Functions, sqs: Any) -> None:
        self.client = client
        self.tables = client.tables
        self.spoiler = spoiling
        self.later = later
        self.sqs = sqs
        self.sockets: defaultdict[str, list[Socket]] = defaultdict(list)
        self.tenant = ""
        self.plan = Plan(untouched, 0, 1000)
        self.calls: list[str] = []
        """The names of the calls that were made while faults were injected."""

    # --- Before and after

    def connect(self, user: str, lives: int = EXPIRES_IN, **claims: Any) -> Socket:
        """Connect a user, with a token that is valid for `lives` seconds."""
        expires = int(time.time()) + lives
        socket = self.client.connect(user, exp=expires, tenant=self.tenant, **claims)
        self.sockets[user].append(socket)
        return socket

    def begin_anew(self) -> None:
        """Disconnect everybody, and wait until nothing is stored, runs or is queued."""
        self.spoiler.end()
        for sockets in self.sockets.values():
            for socket in sockets:
                socket.connection.close()
        self.sockets.clear()
        self.settle()
        with suppress(self.sqs.exceptions.PurgeQueueInProgress):
            self.sqs.purge_queue(QueueUrl=self.client.running.aws[QUEUE_URL])
        empty(self.tables, TABLES)
        # Execution environments remember users whose items are gone; a new tenant has new users.
        self.tenant = uuid4().hex

    @property
    def dies(self) -> bool:
        """True if the plan kills a function."""
        return self.plan.fault in DEATHS

    def allowed(self, *statuses: int) -> tuple[int, ...]:
        """Return the allowed statuses: 502, of API Gateway, too if a function is killed."""
        return (*statuses, 502) if self.dies else statuses

    def assert_says_no(self, answer: Any) -> None:
        """Assert that the answer says that the request may not have been carried out."""
        if self.dies:
            assert answer["message"] == "Internal server error"
        else:
            assert (answer["type"], answer["code"]) == ("error", "unavailable")

    @contextmanager
    def spoiled(self) -> Iterator[None]:
        """Inject the planned faults into what happens within the context."""
        self.spoiler.begin(self.plan)
        yield
        self.spoiler.wait_until_spoiled()
        self.calls = self.spoiler.end()

    def settle(self) -> None:
        """Wait until functions have done everything. Invocations queue for one environment."""
        for _ in range(2):
            self.client.http.get("/health", timeout=DONE_SECONDS)

    def sweep(self) -> None:
        """Run the next sweep, eleven minutes later, and assert that it succeeds."""
        for item in list(scan(self.tables, TABLES.users)):
            if item["user"]["S"].startswith("sweep-"):
                self.tables.delete_item(TableName=TABLES.users, Key={"user": item["user"]})
        assert self.later.sweep()

    def assert_consistent(self) -> None:
        """Assert that after a sweep the tables agree with each other and with the open sockets."""
        self.sweep()
        assert_they_agree(partial(scan, self.tables), TABLES, LIMIT)
        stored: defaultdict[str, int] = defaultdict(int)
        for item in scan(self.tables, TABLES.connections):
            stored[item["userId"]["S"]] += 1
        for user, sockets in self.sockets.items():
            assert stored[user] == len(sockets)
            presence = self.client.presence(user, tenant=self.tenant)
            status = "online" if sockets else "offline"
            assert (presence["status"], presence["connections"]) == (status, len(sockets))
        assert sum(stored.values()) == sum(map(len, self.sockets.values()))

    def assert_reachable(self) -> None:
        """Assert that a message to each user reaches each of their sockets."""
        for user in [user for user, sockets in self.sockets.items() if sockets]:
            report = self.report({"users": [user]})
            assert report["delivered"] == len(self.sockets[user])
            for socket in self.sockets[user]:
                found = _messages_until("left", socket, LEAVE)
                assert report["id"] in [message["id"] for message in found]

    # --- What users do

    def try_to_connect(self, user: str, **claims: Any) -> int:
        """Connect a user. Returns the status of the handshake."""
        try:
            self.connect(user, **claims)
        except InvalidStatus as refused:
            return refused.response.status_code
        return 101

    def report(self, to: Any) -> Any:
        """Send a message from alice, without a fault. Returns the report."""
        return self.client.report(to, tenant=self.tenant)

    def post(self, body: Any, idempotency_key: str) -> httpx.Response:
        """Post a message from alice. The answer may take as long as API Gateway allows."""
        return self.client.http.post(
            "/messages",
            content=json.dumps(body),
            headers={
                **self._authorization,
                "Content-Type": "application/json",
                "Idempotency-Key": idempotency_key,
            },
            timeout=30,
        )

    @property
    def _authorization(self) -> dict[str, str]:
        bearer = token("alice", exp=int(time.time()) + EXPIRES_IN, tenant=self.tenant)
        return {"Authorization": f"Bearer {bearer}"}

    def expire_claims(self) -> None:
        """Let the claims of idempotency keys expire now."""
        for item in scan(self.tables, TABLES.messages):
            if "claimedUntil" in item:
                self.tables.update_item(
                    TableName=TABLES.messages,
                    Key={"id": item["id"]},
                    UpdateExpression="SET claimedUntil = :past",
                    ExpressionAttributeValues={":past": {"N": "0"}},
                )

    def progress(self, message_id: str) -> Any:
        """Return the report of a queued message, once it is done."""

        def asked() -> Any:
            path = f"/messages/{message_id}"
            return self.client.http.get(path, headers=self._authorization).json()

        eventually(lambda: asked().get("done"), DONE_SECONDS)
        return asked()

    def leave(self, user: str) -> None:
        """Close all sockets of a user."""
        for socket in self.sockets[user]:
            socket.connection.close()
        self.sockets[user] = []

    def lose(self, user: str) -> None:
        """Close all sockets of a user, while `$disconnect` can't write."""
        self.spoiler.begin(Plan(reset, 0, 2))
        self.leave(user)
        self.spoiler.wait_until_spoiled()
        self.spoiler.end()

    def ask(self, user: str, **frame: Any) -> Any:
        """Send a user's frame. Returns its answer, or API Gateway's error if a handler failed."""
        [socket] = self.sockets[user]
        socket.connection.send(json.dumps({**frame, "ref": "asked"}))
        while (answer := socket.receive()).get("ref") != "asked" and "connectionId" not in answer:
            pass
        return answer

    def received(self, user: str) -> list[str]:
        """Return the ids of the messages that a user's sockets have received."""
        return [
            message["id"]
            for socket in self.sockets[user]
            for message in _messages_until("left", socket, LEAVE)
        ]

    def resumed(self, user: str) -> list[str]:
        """Reconnect as a user and resume. Returns the ids of the messages."""
        socket = self.connect(user)
        frame = {"action": "resume", "after": EARLIEST}
        return [message["id"] for message in _messages_until("resumed", socket, frame)]


def _messages_until(kind: str, socket: Socket, frame: Any) -> list[Any]:
    """Send a frame. Returns the messages that come before its answer."""
    socket.connection.send(json.dumps({**frame, "ref": "until"}))
    messages: list[Any] = []
    while (answer := socket.receive()).get("ref") != "until":
        messages += answer.get("messages", [])
    assert answer["type"] == kind, answer
    return messages


@contextmanager
def scene() -> Iterator[Scene]:
    """Run a Herald of its own, with nobody connected."""
    with ExitStack() as stack:
        spoiling = stack.enter_context(spoiler())
        environment = {
            "AWS_ENDPOINT_URL_DYNAMODB": spoiling.urls[AWS],
            "AWS_ENDPOINT_URL_SQS": spoiling.urls[AWS],
            "HERALD_MANAGEMENT_ENDPOINT": f"{spoiling.urls[CONNECTIONS]}/ws",
            "HERALD_INLINE_RECIPIENTS": str(INLINE),
            "HERALD_CONNECT_RATE": "100000",
            # The number of the rate's calls depends on the moment. Their faults, after which a
            # delivery goes on, are in tests/unit/fanout/test_rate.py.
            "HERALD_FANOUT_RATE": "0",
            "GATEWAY_CONCURRENCY": "1",
            "GATEWAY_SCHEDULE_SECONDS": "86400",  # the test sweeps, eleven minutes later
            "HERALD_STALE_AFTER_SECONDS": "600",
        }
        # The emulator's address is known once the gateway runs; no function runs before that.
        running = stack.enter_context(served(configured(**environment)))
        spoiling.targets |= {AWS: running.aws["AWS_ENDPOINT_URL"], CONNECTIONS: running.http}
        functions = Functions({**configured(**environment).variables, **running.aws})
        stack.callback(functions.close)
        clients = stack.enter_context(closing(Client(running)))
        sqs = stack.enter_context(closing(client("sqs", running.aws)))
        hide_jobs_for(RETURN_SECONDS, sqs, running.aws[QUEUE_URL])
        yield Scene(clients, spoiling, functions, sqs)
