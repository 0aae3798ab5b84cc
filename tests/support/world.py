"""A model of API Gateway and its clients, and Herald over a DynamoDB client that can be stopped.

It does what the local gateway can't: events arrive late, twice or never, and handlers die between
any two of their DynamoDB calls.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from chalicelib import wiring
from chalicelib.auth.access import AccessRules
from chalicelib.auth.principal import Principal, Scope
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.fanout.limits import DEFAULT_LIMITS, FanoutLimits
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import ConnectionLimitPolicy, Settings
from chalicelib.store.items import Recipient
from chalicelib.store.schema import Tables
from chalicelib.websocket.event import WebSocketEvent
from tests.support.tables import HISTORY_SECONDS

LIMIT = 2  # connections of a user
STALE_AFTER_SECONDS = 600
SCOPES = frozenset({Scope.WS_CONNECT, Scope.MESSAGES_SEND})
LIFE = Tables("life-connections", "life-users", "life-groups", "life-messages", "life-history")
FRAME_BYTES = 32768
UNLIMITED_RATE = 1_000_000  # requests a second
NEVER = 10_000.0  # seconds: no deadline
SECRET = "x" * 32


class Crash(BaseException):
    """The end of an execution environment, which no handler can catch."""


class Inline(Executor):
    """An executor without threads, so that a handler is one thread that can be stopped."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


class Aws:
    """A DynamoDB client that also takes jobs for the world's queue, as SQS does."""

    def __init__(self, client: Any, world: "World") -> None:
        self._client = client
        self._world = world

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._client, operation)

    def send_message_batch(self, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
        for entry in Entries:
            record = {
                "messageId": str(uuid4()),
                "body": entry["MessageBody"],
                "attributes": {"ApproximateReceiveCount": "0"},
            }
            self._world.queue.append(record)
        return {}


class Handler:
    """A handler in a thread that pauses before each of its DynamoDB calls."""

    def __init__(self, client: Any, run: Callable[[Any], object]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self._client = client
        self._dying = False
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, args=(run,), daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._client, operation)

        def stopped(*arguments: Any, **parameters: Any) -> Any:
            if self._dying:  # also in an `except` or a `finally`: a dead handler cleans nothing up
                raise Crash
            self._stopped.release()
            self._go.acquire()
            if self._dying:
                raise Crash
            return call(*arguments, **parameters)

        return stopped

    def step(self) -> None:
        """Let it make one call, and run until it is about to make the next."""
        self._go.release()
        self._stopped.acquire()
        if self.done:
            self._thread.join()

    def crash(self) -> None:
        """Let it die before its next call."""
        self._dying = True
        self.step()

    def _main(self, run: Callable[[Any], object]) -> None:
        try:
            self.result = run(self)
        except BaseException as error:
            self.error = error
        self.done = True
        self._stopped.release()


@dataclass
class Socket:
    """A client's socket. `state`: handshake → accepted → open → closed, or refused."""

    connection_id: str
    user: str
    connected_at: int
    state: str = "handshake"

    def event(self, body: str = "") -> WebSocketEvent:
        """Return an event of this socket; with a body, a MESSAGE."""
        principal = Principal(self.user, 10**12, scopes=SCOPES, groups=("team", "room-*"))
        context = {
            "connectionId": self.connection_id,
            "connectedAt": self.connected_at,
            "domainName": "example.com",
            "stage": "prod",
            "identity": {"sourceIp": "127.0.0.1"},
            "authorizer": principal.to_context(),
        }
        return WebSocketEvent({"requestContext": context, "headers": {}, "body": body})


class World:
    """API Gateway and its clients. It implements `Delivery`, since it has the sockets."""

    def __init__(self) -> None:
        self.now = int(time.time() * 1000)
        self.sockets: dict[str, Socket] = {}
        self.disconnects: list[Socket] = []
        self.trouble = False
        self.queue: list[dict[str, Any]] = []
        self.estimate: int | None = None
        """The number of active connections that the fan-out sees; None means unknown."""
        self.calls = 0
        """The number of calls to `@connections`."""
        self.received: defaultdict[str, list[str]] = defaultdict(list)
        """The ids of the messages that each connection received, in order."""

    def connect(self, user: str) -> Socket:
        """Begin a handshake; the test calls `on_connect` with its event."""
        socket = Socket(f"{len(self.sockets):015}=", user, self.now)
        self.sockets[socket.connection_id] = socket
        return socket

    def end(self, socket: Socket, state: str = "closed") -> None:
        """End a socket, from either side; one that was accepted owes a `$disconnect`."""
        if socket.state in ("accepted", "open"):
            self.disconnects.append(socket)
        socket.state = state

    def finish_handshakes(self, _: object = None) -> None:
        """Open the accepted sockets; stands in for `time.sleep`, since handlers sleep for this."""
        for socket in self.sockets.values():
            if socket.state == "accepted":
                socket.state = "open"

    def deliver(self, pages: Iterable[Sequence[Parcel]], deadline: Deadline) -> Iterator[Outcome]:
        """Implement `Delivery.deliver`."""
        for page in pages:
            for recipient, frames in page:
                result = Result.DELIVERED
                for frame in frames:
                    if result is not Result.DELIVERED:
                        yield Outcome(recipient, frame, result, str(result), 0)
                        continue
                    self.calls += 1
                    result = self._answer(recipient, frame.method)
                    if result is Result.DELIVERED:
                        ids = [message.id for message in frame.messages]
                        self.received[recipient.connection_id] += ids
                        self.arrive(recipient.connection_id, frame.body)
                    yield Outcome(recipient, frame, result, str(result), 1)

    def arrive(self, connection_id: str, body: bytes) -> None:
        """Take a frame that reaches a client. Subclasses override it to look at frames."""

    def post(self, connection_id: str, endpoint: str, body: bytes, deadline: Deadline) -> None:
        """Implement `Delivery.post`."""
        list(self.deliver([[Parcel(self._recipient(connection_id), (frame_of(body),))]], deadline))

    def _recipient(self, connection_id: str) -> Recipient:
        return Recipient(connection_id, "", None, "")

    def _answer(self, recipient: Recipient, method: str) -> Result:
        socket = self.sockets[recipient.connection_id]
        if socket.state != "open":
            return Result.GONE
        if self.trouble:
            return Result.STALE
        if method == "DELETE":
            self.end(socket)
        return Result.DELIVERED


class Herald(wiring.Herald):
    """Herald over one handler's DynamoDB client, as in one execution environment."""

    def __init__(
        self,
        client: Any,
        world: World,
        *,
        evicts: bool = False,
        inline: int | None = None,
        delivery: Any = None,
        writers: Executor | None = None,
        fanout_limits: FanoutLimits = DEFAULT_LIMITS,
        **others: Any,
    ) -> None:
        """Compose Herald.

        Args:
            evicts: Evict the oldest connection at the limit, instead of refusing the new one.
            inline: Queue a message with more recipients; None delivers everything inline.
            delivery: The port to the sockets; the world by default.
            writers: Runs writes; without threads by default.
            others: Settings that differ from those of most tests.
        """
        settings = replace(
            Settings.from_environ({"HERALD_JWT_SECRET": SECRET}),
            connections_table=LIFE.connections,
            users_table=LIFE.users,
            groups_table=LIFE.groups,
            messages_table=LIFE.messages,
            history_table=LIFE.history,
            connect_rate=UNLIMITED_RATE * 60,
            message_rate=UNLIMITED_RATE,
            message_burst=UNLIMITED_RATE,
            read_rate=UNLIMITED_RATE,
            read_burst=UNLIMITED_RATE,
            connection_limit_policy=(
                ConnectionLimitPolicy.EVICT_OLDEST if evicts else ConnectionLimitPolicy.REJECT
            ),
            max_connections_per_user=LIMIT,
            history_seconds=HISTORY_SECONDS,
            frame_bytes=FRAME_BYTES,
            stale_after_seconds=STALE_AFTER_SECONDS,
            fanout_queue_url=None if inline is None else "https://sqs.invalid/queue",
            fanout_rate=0,
            inline_recipients=inline or 0,
        )
        settings = replace(settings, **others)
        super().__init__(
            settings,
            dynamodb=client,
            delivery=delivery or world,
            sqs=lambda: client,
            sns=lambda: client,
            region="region",
            verify=TokenVerifier(settings).verify,
            rules=AccessRules(settings),
            metrics=Metrics("test"),
            writers=writers or Inline(),
            readers=Inline(),
            now=lambda: EpochMs(world.now),
            fanout_limits=fanout_limits,
        )
        self._world = world

    def active_connections(self) -> int | None:
        """Return the world's estimate."""
        return self._world.estimate
