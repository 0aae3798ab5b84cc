"""Each message reaches its audience, once and in order, while clients connect and disconnect.

Hypothesis decides what happens: clients lose their connections, noticed or not; handlers stop
before each of their DynamoDB calls, where they die or others run first; the queue delivers jobs
late and twice. In the end, each client has every message that it must have, and no other.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs
from chalicelib.errors import HeraldError
from chalicelib.fanout.limits import FanoutLimits
from chalicelib.protocol.messages import accept, parse_message
from chalicelib.protocol.reports import Queued
from chalicelib.protocol.ulid import Stamp, earliest
from chalicelib.runtime.deadlines import Deadline
from tests.support.tables import empty
from tests.support.world import (
    LIFE,
    NEVER,
    SCOPES,
    Aws,
    Crash,
    Handler,
    Herald,
    Socket,
    World,
)

EXPLORE = os.environ.get("LIFE_EXAMPLES")
"""The number of random runs, new ones in each test run; by default, the same few."""

USERS = ("alice", "bob", "carol")
ROOM = "room-1"
ONE_PAGE = FanoutLimits(slice_seconds=0.0)  # a worker re-queues its jobs after one page
SENDER = Principal("server", 10**12, scopes=SCOPES | {Scope.MESSAGES_BROADCAST})
SOON = st.sampled_from([0, 1, 2, 3, 4, 50, 50, 50])
"""The number of calls that a handler makes before something else happens; 50 means all."""


@dataclass
class Sent:
    """A message, sent between the moments `began` and `ended` of the machine.

    A `queued` one has ended when the queue is empty again: it may reach a user who becomes a member
    until then. Whoever is a member from `began` to `accepted` gets it.
    """

    id: str
    to: dict[str, Any]
    began: int
    ended: int | None = None
    accepted: int | None = None
    stored: bool = True
    queued: bool = False


@dataclass
class Member:
    """A user's membership of the room.

    It is certain from `joined` to `leaving`, and possible from `joining` to `left`.
    """

    joining: int
    joined: int | None = None
    leaving: int | None = None
    left: int | None = None


@dataclass
class Reader:
    """A client that follows the protocol.

    It drops ids that it has seen, and holds messages back while it resumes.
    """

    user: str
    after: str
    since: int
    socket: Socket | None = None
    resuming: bool = False
    held: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)
    rooms: list[Member] = field(default_factory=list)

    @property
    def room(self) -> Member | None:
        """Return its last membership."""
        return self.rooms[-1] if self.rooms else None

    def receive(self, frame: dict[str, Any], now: EpochMs) -> None:
        match frame["type"]:
            case "messages":
                ids = [message["id"] for message in frame["messages"]]
                self.held += ids
                if not self.resuming:
                    self.take()
            case "resumed":
                assert frame["complete"]
                self.resuming = False
                self.held.sort()
                self.take()
            case "joined" if self.room and self.room.joined is None:
                self.room.joined = now
            case "left" if self.room:
                self.room.left = now

    def take(self) -> None:
        for message_id in self.held:
            if message_id not in self.got:
                self.got.append(message_id)
            self.after = max(self.after, message_id)
        self.held = []

    def drop(self) -> None:
        self.socket, self.held, self.resuming = None, [], False


class Network(World):
    """Passes frames to readers, and silently drops those to readers without a connection."""

    def __init__(self, machine: "Lives") -> None:
        super().__init__()
        self._machine = machine

    def arrive(self, connection_id: str, body: bytes) -> None:
        for reader in self._machine.readers.values():
            if reader.socket and reader.socket.connection_id == connection_id and body:
                reader.receive(json.loads(body), EpochMs(next(self._machine.moments)))


class Lives(RuleBasedStateMachine):
    """All events that can happen, in any order."""

    client: Any

    def __init__(self) -> None:
        super().__init__()
        empty(self.client, LIFE)
        self.moments = count(1)
        self.readers: dict[str, Reader] = {}
        self.world = Network(self)
        self.aws = Aws(self.client, self.world)
        self.handlers: list[tuple[Handler, Callable[[Handler], None], Any]] = []
        self.environments: list[Any] = []
        self.sent: list[Sent] = []

    @initialize()
    def everybody_connects(self) -> None:
        for user in USERS:
            reader = Reader(user, earliest(EpochMs(self.world.now)), next(self.moments))
            self.readers[user] = reader
            self._connect(reader, again=False)
        self.world.now += 1

    # --- What clients and networks do

    @rule(user=st.sampled_from(USERS), known=st.booleans(), told=st.booleans(), soon=SOON)
    def a_client_drops_or_comes_back(self, user: str, known: bool, told: bool, soon: int) -> None:
        """Let API Gateway notice a loss (`known`) and report it (`told`), or not."""
        reader = self.readers[user]
        socket = reader.socket
        if socket is None:
            self._connect(reader)
            self._resume(reader, soon)
            return
        reader.drop()
        if known:
            socket.state = "closed"
            if told:
                self._run(lambda herald: herald.lifecycle.on_disconnect(socket.event()), soon)

    @rule(user=st.sampled_from(USERS), soon=SOON)
    def a_client_asks_again(self, user: str, soon: int) -> None:
        reader = self.readers[user]
        if reader.resuming:
            self._resume(reader, soon)

    @rule(user=st.sampled_from(USERS), soon=SOON)
    def a_client_joins(self, user: str, soon: int) -> None:
        reader = self.readers[user]
        if reader.socket and (reader.room is None or reader.room.left):
            reader.rooms.append(Member(next(self.moments)))
            self._say(reader, soon, action="join", group=ROOM)
            self.world.now += 1

    @rule(user=st.sampled_from(USERS))
    def a_client_leaves(self, user: str) -> None:
        """Run it without interruption: this test does not cover concurrent joins."""
        reader = self.readers[user]
        room = reader.room
        if reader.socket and room and room.joined and not room.leaving and not self.handlers:
            room.leaving = next(self.moments)
            self.world.now += 1
            self._say(reader, 50, action="leave", group=ROOM)
            self.world.now += 1

    @rule(
        to=st.sampled_from(
            [
                {"users": ["alice"]},
                {"users": ["alice", "bob"], "exceptUsers": ["bob"]},
                {"users": list(USERS)},
                {"groups": ["team"], "exceptUsers": ["carol"]},
                {"groups": [ROOM]},
                {"groups": [ROOM, "team"]},
                {"all": True},
            ]
        ),
        store=st.sampled_from([True, True, True, False]),
        soon=SOON,
    )
    def a_message_is_sent(self, to: dict[str, Any], store: bool, soon: int) -> None:
        def send(herald: Herald) -> object:
            return herald.dispatcher.send([message], SENDER, Deadline.after(NEVER))

        def ended(handler: Handler) -> None:
            if handler.error is None:
                sent.accepted = next(self.moments)
                sent.queued = isinstance(handler.result[0], Queued)
                if not sent.queued:
                    sent.ended = sent.accepted

        draft = parse_message({"to": to, "data": 1, "store": store}, may_encrypt=False)
        [message] = accept([draft], sender="server", stamp=Stamp.fresh(EpochMs(self.world.now)))
        sent = Sent(message.id, to, next(self.moments), stored=store)
        self.sent.append(sent)
        self.world.now += 1
        self._run(send, soon, ended)

    # --- What happens to workers and handlers

    @precondition(lambda self: self.world.queue)
    @rule(data=st.data(), again=st.booleans(), soon=SOON)
    def a_worker_runs(self, data: st.DataObject, again: bool, soon: int) -> None:
        queue = self.world.queue
        record = queue[data.draw(st.integers(0, len(queue) - 1))]

        def work(herald: Herald) -> object:
            return herald.worker.work([record], Deadline.after(NEVER))

        def ended(handler: Handler) -> None:
            if handler.result == [] and record in queue and not again:
                queue.remove(record)

        self._run(work, soon, ended)

    @precondition(lambda self: self.handlers)
    @rule(data=st.data(), soon=SOON)
    def a_handler_goes_on(self, data: st.DataObject, soon: int) -> None:
        entry = self.handlers[data.draw(st.integers(0, len(self.handlers) - 1))]
        self._go_on(entry, max(1, soon))

    @precondition(lambda self: self.handlers)
    @rule(data=st.data())
    def a_handler_crashes(self, data: st.DataObject) -> None:
        entry = self.handlers[data.draw(st.integers(0, len(self.handlers) - 1))]
        entry[0].crash()
        self._settle(entry)

    @rule(seconds=st.sampled_from([1, 5]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += seconds * 1000

    # --- Invariants

    @invariant()
    def queued_messages_are_sent_when_the_queue_is_empty(self) -> None:
        if not self.world.queue and not self.handlers:
            for sent in self.sent:
                if sent.queued and sent.ended is None:
                    sent.ended = next(self.moments)

    @invariant()
    def clients_get_only_their_messages(self) -> None:
        sent = {one.id: one for one in self.sent}
        for reader in self.readers.values():
            for message_id in reader.got:
                assert self._concerns(reader, sent[message_id], surely=False)

    @invariant()
    def messages_arrive_in_the_order_of_sending(self) -> None:
        sent = {one.id: one for one in self.sent}
        for reader in self.readers.values():
            for index, later in enumerate(reader.got):
                for earlier in reader.got[index + 1 :]:
                    ended = sent[earlier].ended
                    assert sent[earlier].queued or ended is None or ended > sent[later].began

    def teardown(self) -> None:
        """Let all clients come back, and check that they have every message."""
        while self.handlers:
            self._go_on(self.handlers[0], 1000)
        for reader in self.readers.values():
            if reader.socket is None or reader.resuming:
                reader.drop()
                self._connect(reader)
                self._resume(reader, 1000)
        while self.world.queue:
            self._work([self.world.queue.pop(0)])
        kept = [sent for sent in self.sent if sent.accepted is not None and sent.stored]
        for reader in self.readers.values():
            assert not reader.resuming
            due = {sent.id for sent in kept if self._concerns(reader, sent, surely=True)}
            assert due <= set(reader.got)
        self.clients_get_only_their_messages()
        self.messages_arrive_in_the_order_of_sending()

    def _concerns(self, reader: Reader, sent: Sent, *, surely: bool) -> bool:
        if reader.user in sent.to.get("exceptUsers", ()):
            return False
        if "users" in sent.to:
            return reader.user in sent.to["users"]
        if "all" in sent.to or "team" in sent.to["groups"]:
            return True
        end = (sent.accepted if surely else sent.ended) or next(self.moments)
        if surely:
            return any(
                room.joined is not None
                and room.joined < sent.began
                and (room.leaving is None or end < room.leaving)
                for room in reader.rooms
            )
        return any(
            room.joining < end and (room.left is None or sent.began < room.left)
            for room in reader.rooms
        )

    # --- Helpers

    def _connect(self, reader: Reader, *, again: bool = True) -> None:
        """Connect without interruption, and join the room again if the client was in it."""
        socket = self.world.connect(reader.user)
        self._run(lambda herald: herald.lifecycle.on_connect(socket.event()))
        socket.state = "open"
        reader.socket = socket
        reader.resuming = again
        if reader.room is not None and reader.room.leaving is None:
            self._say(reader, 1000, action="join", group=ROOM)

    def _resume(self, reader: Reader, soon: int) -> None:
        reader.resuming = True
        self._say(reader, soon, action="resume", after=reader.after)

    def _work(self, records: list[Any]) -> None:
        self._run(lambda herald: herald.worker.work(records, Deadline.after(NEVER)))

    def _say(self, reader: Reader, soon: int, **frame: str) -> None:
        assert reader.socket is not None
        event = reader.socket.event(json.dumps(frame))
        self._run(lambda herald: herald.actions.receive(event, Deadline.after(NEVER)), soon)

    def _run(
        self,
        act: Callable[[Herald], object],
        steps: int = 1000,
        ended: Callable[[Handler], None] = lambda _: None,
    ) -> None:
        """Start a handler in a free execution environment, and let it make `steps` calls."""
        herald_of = self._environment()
        handler = Handler(self.aws, lambda client: act(herald_of(client)))
        entry = handler, ended, herald_of
        self.handlers.append(entry)
        self._settle(entry)
        self._go_on(entry, steps)

    def _environment(self) -> Callable[[Any], Herald]:
        """Return an execution environment, which sends one request after the other.

        Each has its own writer in the history, so it knows the order of its own messages.
        """
        if self.environments:
            found: Callable[[Any], Herald] = self.environments.pop()
            return found
        first = Herald(None, self.world).history

        def herald_of(client: Any) -> Herald:
            herald = Herald(client, self.world, inline=1, evicts=True, fanout_limits=ONE_PAGE)
            herald.history._writer, herald.history._numbers = first._writer, first._numbers
            return herald

        return herald_of

    def _go_on(self, entry: tuple[Handler, Any, Any], steps: int) -> None:
        for _ in range(steps):
            if entry[0].done:
                break
            entry[0].step()
            self._settle(entry)

    def _settle(self, entry: tuple[Handler, Any, Any]) -> None:
        handler, ended, environment = entry
        if not handler.done:
            return
        self.handlers.remove(entry)
        if handler.error is not None and not isinstance(handler.error, HeraldError | Crash):
            raise handler.error
        if not isinstance(handler.error, Crash):
            self.environments.append(environment)
        ended(handler)


@pytest.mark.ministack
@pytest.mark.timeout(0 if EXPLORE else 300)
def test_every_message_reaches_its_audience_once_and_in_order(
    life: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    run_machine(
        type("Machine", (Lives,), {"client": life}),
        settings=settings(
            max_examples=int(EXPLORE or 80),
            derandomize=not EXPLORE,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
