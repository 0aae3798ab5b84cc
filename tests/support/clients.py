"""Clients that use a running Herald as a user's program would."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from joserfc import jwt
from joserfc.jwk import OctKey
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from gateway import configuration as settings
from gateway.aws.emulator import client
from gateway.configuration import Configuration
from gateway.server import Running, gateway
from tests.support.schemas import check_answer, check_received, check_sent

SECRET = "a-secret-for-the-tests-of-at-least-32-bytes"
EVERY_SCOPE = "ws:connect messages:send messages:broadcast users:read connections:manage"
RECEIVE_SECONDS = 30.0
ACCEPTED = ("pong", "ack", "joined", "left", "refreshed")
QUIET_SECONDS = 0.3
"""The time without a frame after which a test concludes that none will arrive."""


def token(
    user: str = "alice", scope: str = EVERY_SCOPE, *, key: str = SECRET, **claims: Any
) -> str:
    """Return a token for `user`. A claim that is None is left out."""
    payload = {"sub": user, "scope": scope, "exp": int(time.time()) + 600, **claims}
    present = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode({"alg": "HS256"}, present, OctKey.import_key(key))


class Client:
    """A client of one gateway. Its WebSockets stay open until `close`."""

    has_herald = True  # `docs/asyncapi.yaml` describes only Herald's frames

    def __init__(self, running: Running) -> None:
        self.running = running
        self.http = httpx.Client(base_url=running.http, timeout=RECEIVE_SECONDS)
        self.tables = client("dynamodb", running.aws)
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        self._stack.close()
        self.tables.close()
        self.http.close()

    def connect(self, user: str = "alice", scope: str = EVERY_SCOPE, **claims: Any) -> "Socket":
        """Open a WebSocket as `user`."""
        return self.open(headers={"Authorization": f"Bearer {token(user, scope, **claims)}"})

    def open(
        self, query: str = "", headers: dict[str, str] | None = None, **options: Any
    ) -> "Socket":
        """Open a WebSocket with the given handshake. Raises InvalidStatus if it is refused."""
        connection = connect(
            self.running.websocket + query,
            additional_headers=headers,
            open_timeout=RECEIVE_SECONDS,
            close_timeout=2,
            compression=None,
            **options,
        )
        return Socket(self._stack.enter_context(connection), checked=self.has_herald)

    def refusal(self, query: str = "", **options: Any) -> int:
        """Return the status of a handshake, which must be refused."""
        try:
            self.open(query, **options)
        except InvalidStatus as refused:
            return refused.response.status_code
        raise AssertionError("the handshake was accepted")

    def post(self, body: Any, user: str = "alice", **claims: Any) -> httpx.Response:
        """POST /messages as `user`."""
        headers = {
            "Authorization": f"Bearer {token(user, **claims)}",
            "Content-Type": "application/json",
        }
        return self.http.post("/messages", content=json.dumps(body), headers=headers)

    def report(self, to: Any, data: Any = "hello", user: str = "alice", **claims: Any) -> Any:
        """Post one message, which must be accepted. Returns its report."""
        answer = self.post({"to": to, "data": data}, user, **claims)
        assert answer.status_code == 200, answer.text
        check_answer("Reports", answer.json())
        [report] = answer.json()["messages"]
        return report

    def presence(self, user: str, asked_by: str | None = None, **claims: Any) -> Any:
        """GET /users/{user}, by default as that user."""
        headers = {"Authorization": f"Bearer {token(asked_by or user, **claims)}"}
        return self.http.get(f"/users/{user}", headers=headers).json()

    def connections(self, user: str, tenant: str | None = None) -> list[Any]:
        """Return the items of a user's connections, whose keys the table's index has."""
        indexed = self.tables.query(
            TableName="herald-connections",
            IndexName="userId",
            KeyConditionExpression="userId = :user",
            ExpressionAttributeValues={":user": {"S": user}},
        )["Items"]
        keys = [{"connectionId": entry["connectionId"]} for entry in indexed]
        found = [
            self.tables.get_item(TableName="herald-connections", Key=key, ConsistentRead=True)
            for key in keys
        ]
        items = [answer["Item"] for answer in found if "Item" in answer]
        return [item for item in items if item.get("tenant", {}).get("S") == tenant]

    def connection_id(self, user: str, tenant: str | None = None) -> str:
        """Return the id of a user's only connection."""
        [item] = self.connections(user, tenant)
        return str(item["connectionId"]["S"])


LEAVE = {"action": "leave", "group": "no-group"}
"""A frame that is charged, accepted and answered with `left`, whatever was sent before it."""


class Socket:
    """An open WebSocket that speaks JSON."""

    def __init__(self, connection: ClientConnection, *, checked: bool) -> None:
        """Wrap a connection; if `checked`, each frame must match `docs/asyncapi.yaml`."""
        self.connection = connection
        self._checked = checked

    def receive(self) -> Any:
        """Return the next frame."""
        frame = json.loads(self.connection.recv(timeout=RECEIVE_SECONDS))
        if self._checked:
            check_received(frame)
        return frame

    def ask(self, frame: Any) -> Any:
        """Send a frame. Returns the next frame that arrives."""
        self.connection.send(frame if isinstance(frame, str) else json.dumps(frame))
        answer = self.receive()
        if self._checked and not isinstance(frame, str) and answer.get("type") in ACCEPTED:
            check_sent(frame)
        return answer

    def messages(self) -> list[Any]:
        """Return the data of the messages in the next frame."""
        frame = self.receive()
        assert frame["type"] == "messages", frame
        return [message["data"] for message in frame["messages"]]

    def assert_quiet(self) -> None:
        """Check that no frame has arrived, nor arrives for a while."""
        with contextlib.suppress(TimeoutError):
            frame = self.connection.recv(timeout=QUIET_SECONDS)
            raise AssertionError(f"received {frame!r}")

    def closed_with(self) -> tuple[int, str]:
        """Wait until the server closes. Returns the code and reason of its close frame."""
        try:
            while True:
                self.connection.recv(timeout=RECEIVE_SECONDS)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code, closed.rcvd.reason


def eventually(condition: Any, seconds: float = RECEIVE_SECONDS) -> None:
    """Wait until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.05)  # a condition that reads over REST stays within `HERALD_READ_RATE`


def whole_lines(file: Path) -> list[str]:
    """Return the complete lines of a file that another process is writing."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


def configured(**environment: str) -> Configuration:
    """Return the configuration of a gateway on a free port, whose functions see `environment`."""
    return settings.configuration({"PORT": "0", "HERALD_JWT_SECRET": SECRET, **environment})


@contextlib.contextmanager
def served(configuration: Configuration) -> Iterator[Running]:
    """Run a gateway in its own thread. Raises its errors, also those of its shutdown."""
    started: list[Running] = []
    errors: list[BaseException] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            async with gateway(configuration) as running:
                started.append(running)
                ready.set()
                await stop.wait()
        except BaseException as error:
            errors.append(error)
            ready.set()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # as `make run` does
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait()
        if started:
            yield started[0]
    finally:
        with contextlib.suppress(RuntimeError):  # the port is closed: the gateway didn't start
            loop.call_soon_threadsafe(stop.set)
        thread.join()
    if errors:
        raise errors[0]
