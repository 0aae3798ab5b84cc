"""A Herald whose every call goes through a spoiler, and whose tables can be asked whether they are
true."""

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
from tests.support.clients import Client, Socket, configured, eventually, served, token
from tests.support.queues import hide_jobs_for
from tests.support.tables import TABLES, assert_they_agree, empty, scan

INLINE = 2
LIMIT = 10  # connections of a user
LATER = PROJECT / "tests" / "apps" / "later"
RETURN_SECONDS = 2  # after which a job comes again whose worker has died
DONE_SECONDS = 20.0
EARLIEST = "0" * 26  # an id before all others
EXPIRES_IN = 3600
"""Tokens live longer than the time that passes until `later`."""


class Functions:
    """Herald's functions as they are in eleven minutes, each invoked by hand."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._environments = Environments(LATER, variables, concurrency=1, function_timeout=60.0)
        self._wait(self._environments.start())

    def sweep(self) -> bool:
        """Whether it ended without an error."""
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
    """One execution environment at a time, so that calls come in one order."""

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
        """What was called where things were `spoiled`."""

    # --- Before and after

    def connect(self, user: str, lives: int = EXPIRES_IN, **claims: Any) -> Socket:
        """A socket of a user's, whose token lives for so many seconds."""
        expires = int(time.time()) + lives
        socket = self.client.connect(user, exp=expires, tenant=self.tenant, **claims)
        self.sockets[user].append(socket)
        return socket

    def begin_anew(self) -> None:
        """Nobody is connected, nothing is stored, no function runs and no job waits."""
        self.spoiler.end()
        for sockets in self.sockets.values():
            for socket in sockets:
                socket.connection.close()
        self.sockets.clear()
        self.settle()
        with suppress(self.sqs.exceptions.PurgeQueueInProgress):
            self.sqs.purge_queue(QueueUrl=self.client.running.aws[QUEUE_URL])
        empty(self.tables, TABLES)
        # An environment remembers users, of whom nothing is stored any more: these are others.
        self.tenant = uuid4().hex

    @property
    def dies(self) -> bool:
        """Whether a function is killed."""
        return self.plan.fault in DEATHS

    def allowed(self, *statuses: int) -> tuple[int, ...]:
        """These, and API Gateway's own for a function that has died."""
        return (*statuses, 502) if self.dies else statuses

    def assert_says_no(self, answer: Any) -> None:
        """A frame tells the client that what it asked for may not have been done."""
        if self.dies:
            assert answer["message"] == "Internal server error"
        else:
            assert (answer["type"], answer["code"]) == ("error", "unavailable")

    @contextmanager
    def spoiled(self) -> Iterator[None]:
        """What is planned happens to what is done here."""
        self.spoiler.begin(self.plan)
        yield
        self.spoiler.wait_until_spoiled()
        self.calls = self.spoiler.end()

    def settle(self) -> None:
        """Wait until whatever functions were asked to do is done: they do one after the other."""
        for _ in range(2):
            self.client.http.get("/health", timeout=DONE_SECONDS)

    def sweep(self) -> None:
        """The next sweep that is due, in eleven minutes."""
        for item in list(scan(self.tables, TABLES.users)):
            if item["user"]["S"].startswith("sweep-"):
                self.tables.delete_item(TableName=TABLES.users, Key={"user": item["user"]})
        assert self.later.sweep()

    def assert_true(self) -> None:
        """After one sweep the tables agree with one another, and with the sockets that are open."""
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
        """A message to each user reaches each of their sockets."""
        for user in [user for user, sockets in self.sockets.items() if sockets]:
            report = self.report({"users": [user]})
            assert report["delivered"] == len(self.sockets[user])
            for socket in self.sockets[user]:
                found = _messages_until("pong", socket, {"action": "ping"})
                assert report["id"] in [message["id"] for message in found]

    # --- What users do, and what becomes of it

    def try_to_connect(self, user: str, **claims: Any) -> int:
        """The handshake's status."""
        try:
            self.connect(user, **claims)
        except InvalidStatus as refused:
            return refused.response.status_code
        return 101

    def report(self, to: Any) -> Any:
        """That of a message of alice's which nothing befalls."""
        return self.client.report(to, tenant=self.tenant)

    def post(self, body: Any, idempotency_key: str) -> httpx.Response:
        """A message of alice's, whose answer may take as long as API Gateway waits."""
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

    def let_claims_run_out(self) -> None:
        """As they do by themselves, but at once."""
        for item in scan(self.tables, TABLES.messages):
            if "claimedUntil" in item:
                self.tables.update_item(
                    TableName=TABLES.messages,
                    Key={"id": item["id"]},
                    UpdateExpression="SET claimedUntil = :past",
                    ExpressionAttributeValues={":past": {"N": "0"}},
                )

    def progress(self, message_id: str) -> Any:
        """A queued message's report, when it is done."""

        def asked() -> Any:
            path = f"/messages/{message_id}"
            return self.client.http.get(path, headers=self._authorization).json()

        eventually(lambda: asked().get("done"), DONE_SECONDS)
        return asked()

    def leave(self, user: str) -> None:
        """All sockets of a user are closed by their client."""
        for socket in self.sockets[user]:
            socket.connection.close()
        self.sockets[user] = []

    def lose(self, user: str) -> None:
        """A user's sockets end, and `$disconnect` can't note it."""
        self.spoiler.begin(Plan(reset, 0, 2))
        self.leave(user)
        self.spoiler.wait_until_spoiled()
        self.spoiler.end()

    def ask(self, user: str, **frame: Any) -> Any:
        """The answer to a frame of a user's, or what API Gateway says where a handler failed."""
        [socket] = self.sockets[user]
        socket.connection.send(json.dumps({**frame, "ref": "asked"}))
        while (answer := socket.receive()).get("ref") != "asked" and "connectionId" not in answer:
            pass
        return answer

    def received(self, user: str) -> list[str]:
        """The ids of the messages that came to a user's sockets until now."""
        return [
            message["id"]
            for socket in self.sockets[user]
            for message in _messages_until("pong", socket, {"action": "ping"})
        ]

    def resumed(self, user: str) -> list[str]:
        """The ids of the messages that a client of a user's is sent which comes back."""
        socket = self.connect(user)
        frame = {"action": "resume", "after": EARLIEST}
        return [message["id"] for message in _messages_until("resumed", socket, frame)]


def _messages_until(kind: str, socket: Socket, frame: Any) -> list[Any]:
    """The messages that come before the answer to a frame."""
    socket.connection.send(json.dumps({**frame, "ref": "until"}))
    messages: list[Any] = []
    while (answer := socket.receive()).get("ref") != "until":
        messages += answer.get("messages", [])
    assert answer["type"] == kind, answer
    return messages


@contextmanager
def scene() -> Iterator[Scene]:
    """A Herald of its own, with nobody in it."""
    with ExitStack() as stack:
        spoiling = stack.enter_context(spoiler())
        environment = {
            "AWS_ENDPOINT_URL_DYNAMODB": spoiling.urls[AWS],
            "AWS_ENDPOINT_URL_SQS": spoiling.urls[AWS],
            "HERALD_MANAGEMENT_ENDPOINT": f"{spoiling.urls[CONNECTIONS]}/ws",
            "HERALD_INLINE_RECIPIENTS": str(INLINE),
            "HERALD_CONNECT_RATE": "100000",
            "GATEWAY_CONCURRENCY": "1",
            "GATEWAY_SCHEDULE_SECONDS": "86400",  # the test sweeps
        }
        # The emulator is known when the gateway runs, and no function is asked before that.
        running = stack.enter_context(served(configured(**environment)))
        spoiling.targets |= {AWS: running.aws["AWS_ENDPOINT_URL"], CONNECTIONS: running.http}
        functions = Functions({**configured(**environment).variables, **running.aws})
        stack.callback(functions.close)
        clients = stack.enter_context(closing(Client(running)))
        sqs = stack.enter_context(closing(client("sqs", running.aws)))
        hide_jobs_for(RETURN_SECONDS, sqs, running.aws[QUEUE_URL])
        yield Scene(clients, spoiling, functions, sqs)
