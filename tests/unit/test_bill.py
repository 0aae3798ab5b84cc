"""What each event costs in DynamoDB is what `bench/units.py` says, from which the bill follows."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from bench import units
from bench.units import Units
from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs
from chalicelib.protocol.ulid import earliest
from chalicelib.runtime.deadlines import Deadline
from chalicelib.websocket.event import WebSocketEvent
from tests.support.limits.costs import read_units, size_of
from tests.support.tables import scan
from tests.support.units import Meter
from tests.support.world import LIFE, NEVER, SCOPES, Aws, Herald, Socket, World

DOMAIN = "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com"
USER = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER_USER = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
MINUTE_MS = 60_000
STALE_AFTER_SECONDS = 4500
NOBODY = {"connections": ["AAAAAAAAAAAAAAA="]}


class Clients(World):
    """Clients that remember the frames that they receive."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Any] = []

    def arrive(self, connection_id: str, body: bytes) -> None:
        self.frames.append(json.loads(body))


class Place:
    """Herald over a meter, and its clients."""

    def __init__(self, client: Any, **settings: Any) -> None:
        self.client = client
        self.meter = Meter(client)
        self.world = Clients()
        aws = Aws(self.meter, self.world)
        self.herald = Herald(
            aws,
            self.world,
            max_connections_per_user=10,
            stale_after_seconds=STALE_AFTER_SECONDS,
            **settings,
        )
        self.step_ms = MINUTE_MS
        """The time that passes after each event."""
        self._principals: dict[str, Principal] = {}

    def connect(self, user: str = USER, *groups: str, tenant: str = "acme") -> Socket:
        """Open a user's connection."""
        socket = self.world.connect(user)
        self._principals[socket.connection_id] = Principal(
            user, 10**12, tenant=tenant, scopes=SCOPES | {Scope.MESSAGES_BROADCAST}, groups=groups
        )
        self.herald.lifecycle.on_connect(self._event(socket))
        socket.state = "open"
        self.world.now += self.step_ms
        return socket

    def disconnect(self, socket: Socket) -> None:
        """End a connection."""
        self.herald.lifecycle.on_disconnect(self._event(socket))
        socket.state = "closed"
        self.world.now += self.step_ms

    def say(self, socket: Socket, **frame: object) -> None:
        """Send a client's frame."""
        event = self._event(socket, json.dumps(frame))
        self.herald.actions.receive(event, Deadline.after(NEVER))
        self.world.now += self.step_ms

    def send(self, socket: Socket, to: Any, **fields: object) -> None:
        """Send a message over a WebSocket."""
        self.say(socket, action="send", to=to, data="hello", **fields)

    def sweep(self) -> None:
        self.herald.sweeper.sweep(Deadline.after(NEVER))

    def cost_of(self, event: Callable[..., object], *arguments: Any, **named: Any) -> Units:
        """Return what an event costs."""
        self.meter.begin()
        event(*arguments, **named)
        writes, reads = self.meter.writes.values(), self.meter.reads.values()
        return Units(len(self.meter.calls), sum(writes), sum(reads))

    def _event(self, socket: Socket, body: str = "") -> WebSocketEvent:
        context = {
            "connectionId": socket.connection_id,
            "connectedAt": socket.connected_at,
            "domainName": DOMAIN,
            "stage": "prod",
            "identity": {"sourceIp": "127.0.0.1"},
            "authorizer": self._principals[socket.connection_id].to_context(),
        }
        return WebSocketEvent({"requestContext": context, "headers": {}, "body": body})


@pytest.fixture
def place(life: Any) -> Place:
    return Place(life)


def known(place: Place, *groups: str) -> None:
    """Let the user have been here before, so that their item has all that a user's item has."""
    socket = place.connect(USER, *groups)
    place.send(socket, {"users": [OTHER_USER]})
    place.say(socket, action="resume", after=earliest(EpochMs(place.world.now)))
    place.disconnect(socket)


def sizes(place: Place, table: str) -> list[int]:
    return [size_of(item) for item in scan(place.client, table)]


# --- Connections


def test_a_handshake_and_its_end(place: Place) -> None:
    known(place)
    assert place.cost_of(place.connect) == units.OPEN
    assert place.cost_of(place.disconnect, list(place.world.sockets.values())[-1]) == units.END
    assert units.OPEN.writes + units.END.writes <= 10


def test_a_handshake_and_its_end_in_a_group(place: Place) -> None:
    known(place, "team")
    assert place.cost_of(place.connect, USER, "team") == units.OPEN_IN_A_GROUP
    socket = list(place.world.sockets.values())[-1]
    assert place.cost_of(place.disconnect, socket) == units.END_IN_A_GROUP


def test_a_heartbeat_is_one_write_of_the_connection(place: Place) -> None:
    known(place)
    socket = place.connect()
    for _ in range(2):
        assert place.cost_of(place.say, socket, action="heartbeat") == units.HEARTBEAT
        assert place.meter.calls == ["update_item"]
        assert place.meter.writes == {LIFE.connections: 1}


# --- Frames


@pytest.mark.parametrize("connections", units.FRAME)
def test_a_frame_is_one_write_of_the_user(place: Place, connections: int) -> None:
    known(place)
    sockets = [place.connect() for _ in range(connections)]
    for _ in range(2):  # once each connection has sent one, the user's item is as large as it gets
        for socket in sockets:
            place.meter.begin()
            place.send(socket, NOBODY)
    assert place.meter.writes == {LIFE.users: units.FRAME[connections].writes}
    assert place.meter.calls.count("update_item") == units.FRAME[connections].calls


def test_a_message_to_a_user(place: Place) -> None:
    known(place)
    socket = place.connect()
    place.connect(OTHER_USER)
    place.send(socket, {"users": [OTHER_USER]})
    whole = units.FRAME[1].plus(units.HISTORY, units.RECIPIENTS)
    assert place.cost_of(place.send, socket, {"users": [OTHER_USER]}) == whole


def test_a_resume_in_one_group(place: Place) -> None:
    known(place, "team")
    sender = place.connect(OTHER_USER, "team")
    place.disconnect(place.connect(USER, "team"))
    had = earliest(EpochMs(place.world.now))
    for to in ({"users": [USER]}, {"groups": ["team"]}, {"all": True}):
        place.send(sender, to)
    socket = place.connect(USER, "team")
    assert place.cost_of(place.say, socket, action="resume", after=had) == units.RESUME
    [messages, resumed] = place.world.frames[-2:]
    assert (len(messages["messages"]), resumed["count"], resumed["complete"]) == (3, 3, True)


# --- Messages to all of a tenant


def crowd(place: Place, count: int = 10, **fields: Any) -> list[Socket]:
    """Open connections of as many users."""
    return [place.connect(f"{USER[:-4]}{number:04}", **fields) for number in range(count)]


def add_tenant(place: Place, connections: int) -> None:
    """Store connections of another tenant: copies of one."""
    before = {table: list(scan(place.client, table)) for table in LIFE}
    [socket] = crowd(place, 1, tenant="other")
    for table in LIFE:
        template = [item for item in scan(place.client, table) if item not in before[table]]
        copies = (
            json.loads(json.dumps(item).replace(socket.connection_id, f"{number:015}+"))
            for item in template
            for number in range(connections)
        )
        put_all(place.client, table, copies)


def put_all(client: Any, table: str, items: Iterable[Any]) -> None:
    batch = []
    for item in items:
        batch.append({"PutRequest": {"Item": item}})
        if len(batch) == 25:
            client.batch_write_item(RequestItems={table: batch})
            batch = []
    if batch:
        client.batch_write_item(RequestItems={table: batch})


def test_a_message_to_all_costs_by_the_tenants_connections(place: Place) -> None:
    [sender, *_] = crowd(place)
    for _ in range(2):
        alone = place.cost_of(place.send, sender, {"all": True})
    assert alone == units.FRAME[1].plus(units.HISTORY, units.ROSTER)
    add_tenant(place, connections=2000)
    assert place.cost_of(place.send, sender, {"all": True}) == alone
    assert len(place.world.received[sender.connection_id]) == 3


def test_an_entry_of_the_roster_is_as_large_as_the_simulation_says(place: Place) -> None:
    crowd(place)
    assert max(sizes(place, LIFE.groups)) <= units.ROSTER_ENTRY_BYTES


def test_a_queued_message_to_all(life: Any) -> None:
    place = Place(life, inline=-1)
    [sender, *_] = crowd(place)
    place.world.estimate = 10
    place.send(sender, {"all": True})
    work_off(place)
    assert place.cost_of(place.send, sender, {"all": True}) == units.QUEUED.plus(units.ROSTER)
    assert place.cost_of(work_off, place) == units.JOB.plus(units.ROSTER)


def work_off(place: Place) -> None:
    """Deliver what is queued, a job at a time."""
    while place.world.queue:
        record = place.world.queue.pop(0)
        assert place.herald.worker.work([record], Deadline.after(NEVER)) == []


# --- The sweep


def swept(place: Place, count: int = 40) -> list[Socket]:
    """Open connections at once, which the first sweep has looked at."""
    place.step_ms = 1
    sockets = crowd(place, count)
    for socket in sockets:
        place.send(socket, NOBODY)
    place.world.now += 2 * MINUTE_MS  # one that has just opened may be in its handshake still
    place.sweep()
    return sockets


def by_table(place: Place) -> tuple[dict[str, int], dict[str, float]]:
    """Return what a sweep ten minutes later writes and reads, by table."""
    place.world.now += 10 * MINUTE_MS
    place.cost_of(place.sweep)
    return dict(place.meter.writes), dict(place.meter.reads)


def test_the_sweep_reads_each_connection_with_its_page(place: Place) -> None:
    swept(place, 2)
    writes, reads = by_table(place)
    swept(place)
    assert max(sizes(place, LIFE.connections)) <= units.CONNECTION_BYTES
    for _ in range(2):
        more_writes, more_reads = by_table(place)
        assert more_writes == writes
        assert more_reads[LIFE.users] == reads[LIFE.users]
        pages = 0.5 * place.meter.calls.count("scan")
        together = read_units(sizes(place, LIFE.connections), consistent=False)
        assert more_reads[LIFE.connections] <= together + pages


def test_the_first_sweep_also_reads_the_user_of_a_connection_without_a_heartbeat(
    place: Place,
) -> None:
    swept(place, 2)
    writes, reads = by_table(place)
    sockets = crowd(place, 40)
    for socket in sockets:
        place.send(socket, NOBODY)
    more_writes, more_reads = by_table(place)
    assert more_writes == writes
    assert more_reads[LIFE.users] - reads[LIFE.users] == 40 * units.UNPROVEN.reads


def test_the_sweep_notes_frames_that_only_the_users_have_seen_once_they_are_old(
    place: Place,
) -> None:
    sockets = swept(place)
    writes, reads = by_table(place)
    place.world.now += 60 * MINUTE_MS
    for socket in sockets:
        place.send(socket, NOBODY)
    place.sweep()  # that of the users, which is due each hour
    more_writes, more_reads = by_table(place)
    assert more_writes[LIFE.connections] == 40 * units.LAGGING.writes
    assert more_reads[LIFE.users] - reads[LIFE.users] == 40 * units.LAGGING.reads
    assert by_table(place)[0] == writes


def test_each_hour_the_sweep_looks_whether_the_users_connections_are_there(place: Place) -> None:
    swept(place)
    writes, reads = by_table(place)
    place.world.now += 50 * MINUTE_MS
    more_writes, more_reads = by_table(place)
    assert more_writes.keys() == writes.keys()
    scans = 0.5 * place.meter.calls.count("scan")
    assert sum(more_reads.values()) - sum(reads.values()) <= 40 * units.TIED.reads + scans
