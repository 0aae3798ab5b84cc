"""Connections under races, lost events, crashes and time: properties of every interleaving.

Hypothesis plays API Gateway, its clients and chance. Events come late, twice, in any order or
never. Every handler pauses before each of its DynamoDB calls; others then run, or it dies. After
each step the tables must agree on each open socket, and at the end on all of them.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import HeraldError
from chalicelib.protocol.messages import accept, parse_message
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.sweep_progress import USERS_INTERVAL_MS
from tests.support.tables import (
    Remembering,
    assert_they_agree,
    assert_what_is_left_can_be_found,
    empty,
)
from tests.support.world import (
    LIFE,
    LIMIT,
    NEVER,
    SCOPES,
    STALE_AFTER_SECONDS,
    Crash,
    Handler,
    Herald,
    Socket,
    World,
)

EXPLORE = os.environ.get("LIFE_EXAMPLES")
"""The number of random lives to try, new ones in each run; by default, the same few."""

USERS = ("alice",)

SOON = st.sampled_from([0, 1, 2, 3, 50, 50, 50])
"""The number of calls that a handler makes before something else happens; 50 means all."""


class Life(RuleBasedStateMachine):
    """Everything that can happen, in any order."""

    client: Remembering
    evicts: bool

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.handlers: list[tuple[Handler, Socket | None]] = []
        self.smooth = True  # until something is lost; then the sweep has to repair it
        time.sleep = self.world.finish_handshakes
        empty(self.client, LIFE)

    # --- What clients and API Gateway do

    @rule(user=st.sampled_from(USERS), soon=SOON)
    def a_client_connects(self, user: str, soon: int) -> None:
        self._connect(self.world.connect(user), soon)

    @precondition(lambda self: self.world.sockets)
    @rule(data=st.data(), soon=SOON)
    def connect_is_invoked_again(self, data: st.DataObject, soon: int) -> None:
        socket = self._draw(data, "handshake", "accepted", "open", "closed")
        if socket and self.world.now - socket.connected_at < 20_000:
            self._connect(socket, soon, again=True)

    @rule()
    def accepted_sockets_open(self) -> None:
        self.world.finish_handshakes()

    @precondition(lambda self: self.world.sockets)
    @rule(data=st.data())
    def a_client_leaves(self, data: st.DataObject) -> None:
        socket = self._draw(data, "handshake", "accepted", "open")
        if socket:
            if socket.state == "handshake":
                self.world.disconnects.append(socket)
            self.world.end(socket)

    @precondition(lambda self: self.world.disconnects)
    @rule(data=st.data(), again=st.booleans(), soon=SOON)
    def disconnect_is_invoked(self, data: st.DataObject, again: bool, soon: int) -> None:
        events = self.world.disconnects
        index = data.draw(st.integers(0, len(events) - 1))
        socket = events[index] if again else events.pop(index)
        self._run(lambda herald: herald.lifecycle.on_disconnect(socket.event()), soon)

    @precondition(lambda self: self.world.disconnects)
    @rule()
    def a_disconnect_is_lost(self) -> None:
        self.world.disconnects.pop()
        self.smooth = False

    @precondition(lambda self: any(it.state == "open" for it in self.world.sockets.values()))
    @rule(data=st.data(), action=st.sampled_from(["heartbeat", "join", "join", "leave"]), soon=SOON)
    def a_client_sends_a_frame(self, data: st.DataObject, action: str, soon: int) -> None:
        socket = self._draw(data, "open")
        assert socket is not None
        frame = {"action": action}
        if action != "heartbeat":
            frame["group"] = data.draw(st.sampled_from(["team", "room-1"]))
        self._send_frame(socket, frame, soon)

    @rule(soon=SOON)
    def a_message_is_posted(self, soon: int) -> None:
        sender = Principal("server", 10**12, scopes=SCOPES)

        def post(herald: Herald) -> None:
            draft = parse_message({"to": {"users": list(USERS)}, "data": 1}, may_encrypt=False)
            messages = accept([draft], sender="server", stamp=Stamp.fresh(EpochMs(self.world.now)))
            herald.dispatcher.send(messages, sender, Deadline.after(NEVER))

        self._run(post, soon)

    # --- What happens by chance

    @precondition(lambda self: self.handlers)
    @rule(data=st.data(), soon=SOON)
    def a_handler_continues(self, data: st.DataObject, soon: int) -> None:
        entry = self.handlers[data.draw(st.integers(0, len(self.handlers) - 1))]
        self._continue(entry, max(1, soon))

    @precondition(lambda self: self.handlers)
    @rule(data=st.data())
    def a_handler_crashes(self, data: st.DataObject) -> None:
        handler, socket = self.handlers[data.draw(st.integers(0, len(self.handlers) - 1))]
        handler.crash()
        self.smooth = False
        self._settle(handler, socket)

    @rule()
    def the_network_changes(self) -> None:
        self.world.trouble = not self.world.trouble
        self.smooth = False

    @rule(seconds=st.sampled_from([1, 1, 35, 61, 700, 7300]))
    def time_passes(self, seconds: int) -> None:
        self.world.finish_handshakes()
        self.world.now += seconds * 1000
        for socket in self.world.sockets.values():
            if socket.state == "handshake" and seconds >= 30:
                socket.state = "refused"  # API Gateway waits no longer
                self.smooth = False
            if socket.state == "open" and seconds >= 7200:
                self.world.end(socket)

    @rule(soon=SOON)
    def the_sweep_begins(self, soon: int) -> None:
        self._run(lambda herald: herald.sweeper.sweep(Deadline.after(NEVER)), soon)

    # --- What must hold

    @invariant()
    def the_tables_agree_on_each_open_socket(self) -> None:
        assert_they_agree(self.client.items, LIFE, LIMIT, self._sockets("open"))

    @invariant()
    def when_no_handler_is_at_work_what_is_left_can_be_found(self) -> None:
        if not self.handlers:
            assert_what_is_left_can_be_found(self.client.items, LIFE, LIMIT)

    @invariant()
    def when_nothing_was_lost_nothing_is_left_over(self) -> None:
        if self.smooth and not self.handlers and not self.world.disconnects:
            assert self._items() == self._sockets("accepted", "open")
            self._assert_all_agree()

    def teardown(self) -> None:
        """Let every handler end; then nobody is locked out, and a sweep makes the tables agree with
        the sockets. It is the sweep of the users, too, which finds the ties that are left."""
        self._finish_all()
        self.world.trouble = False
        self.world.finish_handshakes()
        self.world.now += 61_000
        for user in USERS:
            alive = [it for it in self.world.sockets.values() if it.state == "open"]
            if sum(socket.user == user for socket in alive) < LIMIT:
                socket = self.world.connect(user)
                self._connect(socket)
                assert socket.state == "accepted"
                self.world.finish_handshakes()
        for socket in list(self.world.sockets.values()):
            # If its eviction crashed half way, the client is told at its next frame.
            if socket.state == "open":
                self._send_frame(socket, {"action": "leave", "group": "team"})
        self.world.now += STALE_AFTER_SECONDS * 1000 + USERS_INTERVAL_MS
        self._run(lambda herald: herald.sweeper.sweep(Deadline.after(NEVER)))
        self._assert_all_agree()
        assert self._items() == self._sockets("open")

    # --- Helpers

    def _assert_all_agree(self) -> None:
        assert_they_agree(self.client.items, LIFE, LIMIT)

    def _items(self) -> set[str]:
        return {item["connectionId"]["S"] for item in self.client.items(LIFE.connections)}

    def _sockets(self, *states: str) -> set[str]:
        return {one for one, socket in self.world.sockets.items() if socket.state in states}

    def _draw(self, data: st.DataObject, *states: str) -> Socket | None:
        ids = sorted(self._sockets(*states))
        return self.world.sockets[data.draw(st.sampled_from(ids))] if ids else None

    def _connect(self, socket: Socket, steps: int = 1000, *, again: bool = False) -> None:
        self._run(
            lambda herald: herald.lifecycle.on_connect(socket.event()),
            steps,
            None if again else socket,
        )

    def _send_frame(self, socket: Socket, frame: object, steps: int = 1000) -> None:
        event = socket.event(json.dumps(frame))
        self._run(lambda herald: herald.actions.receive(event, Deadline.after(NEVER)), steps)

    def _run(
        self,
        act: Callable[[Herald], object],
        steps: int = 1000,
        socket: Socket | None = None,
    ) -> None:
        """Start a handler, and let it make `steps` calls."""
        handler = Handler(
            self.client, lambda client: act(Herald(client, self.world, evicts=self.evicts))
        )
        self.handlers.append((handler, socket))
        self._settle(handler, socket)
        self._continue((handler, socket), steps)

    def _continue(self, entry: tuple[Handler, Socket | None], steps: int) -> None:
        for _ in range(steps):
            if entry[0].done:
                break
            entry[0].step()
            self._settle(*entry)

    def _settle(self, handler: Handler, socket: Socket | None) -> None:
        """Record how a handler ended, if it did."""
        if not handler.done:
            return
        self.handlers.remove((handler, socket))
        if handler.error is not None and not isinstance(handler.error, HeraldError | Crash):
            raise handler.error
        if socket is not None and socket.state == "handshake":
            socket.state = "accepted" if handler.error is None else "refused"

    def _finish_all(self) -> None:
        while self.handlers:
            self._continue(self.handlers[0], 1000)


@pytest.mark.ministack
@pytest.mark.timeout(0 if EXPLORE else 300)
@pytest.mark.parametrize("evicts", [False, True], ids=["reject", "evict-oldest"])
def test_the_tables_agree_with_the_sockets_whatever_happens(
    life: Any, evicts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", time.sleep)  # each example sets its own
    machine = type("Machine", (Life,), {"client": Remembering(life), "evicts": evicts})
    run_machine(
        machine,
        settings=settings(
            max_examples=int(EXPLORE or 60),
            derandomize=not EXPLORE,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
