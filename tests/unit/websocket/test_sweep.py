"""Pages, shards and reports of the sweep. `test_connection_lifecycles.py` shows what it repairs."""

import math
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import pytest

from chalicelib.auth.principal import user_key
from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import PROBE
from chalicelib.delivery.parcel import Outcome
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics, Unit
from chalicelib.store.activity import ActivityRecorder
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Store
from chalicelib.store.handshakes import Handshakes
from chalicelib.store.items import Connection, Recipient
from chalicelib.store.memberships import Memberships
from chalicelib.store.sweep_progress import (
    CONNECTIONS,
    LEASE_MS,
    SHARDS,
    USERS_INTERVAL_MS,
    SweepProgress,
)
from chalicelib.websocket.sweep import PAGE_ITEMS, Sweeper
from tests.support.tables import LATER, NOW, Counted, connection, limiter
from tests.support.world import LIFE, Inline

DEADLINE = Deadline(math.inf)


class OnePageDeadline(Deadline):
    """Leaves time for one page."""

    def __init__(self) -> None:
        super().__init__(math.inf)
        self._left = chain([math.inf], repeat(0.0))

    def left(self) -> float:
        return next(self._left)


@pytest.fixture
def client(life: Any) -> Any:
    return Counted(life)


class Sweep:
    """A sweeper, and what it did."""

    def __init__(self, client: Any, *, stale_after_seconds: int = 600) -> None:
        self.now: int = NOW
        self.stale_after_seconds = stale_after_seconds
        self.probed: list[str] = []
        self.expired: list[str] = []
        self.reported: list[float] = []
        self.store = Store(client, LIFE)
        self.progress = SweepProgress(self.store, now=lambda: EpochMs(self.now))
        self.connections = Connections(
            self.store,
            handshakes=Handshakes(self.store, limit=10, limiter=limiter("connectDue")),
            activity=ActivityRecorder(self.store, message_limiter=limiter("messageDue")),
            memberships=Memberships(self.store, seconds=0),
            metrics=Metrics("test"),
        )

    def sweep(self, deadline: Deadline = DEADLINE, page_items: int = PAGE_ITEMS) -> None:
        this: Any = self  # stands in for OutcomeRecorder, Disconnector and Metrics
        Sweeper(
            self.store,
            progress=self.progress,
            connections=self.connections,
            outcome_recorder=this,
            disconnector=this,
            stale_after_seconds=self.stale_after_seconds,
            metrics=this,
            writers=Inline(),
            now=lambda: EpochMs(self.now),
            page_items=page_items,
        ).sweep(deadline)

    def probe(self, recipients: list[Recipient], deadline: Deadline) -> list[Outcome]:
        self.probed += [one.connection_id for one in recipients]
        return [
            Outcome(one, PROBE, Result.GONE if "gone" in one.connection_id else Result.DELIVERED,
                    "", 1)
            for one in recipients
        ]  # fmt: skip

    def disconnect_expired(self, recipients: list[Recipient], deadline: Deadline) -> None:
        self.expired += [one.connection_id for one in recipients]

    def value(self, name: str, value: float, unit: Unit) -> None:
        assert (name, unit) == ("ActiveConnections", Unit.COUNT)
        self.reported.append(value)

    def say(self, one: str, at: EpochMs, opened: Connection | None = None) -> None:
        """Record a frame of a connection."""
        principal = (opened or connection(one, f"user-of-{one}")).principal
        self.connections.activity.record_frame(one, principal, at)

    def open(self, *ids: str, at: EpochMs = NOW) -> None:
        for one in ids:
            self.connections.open(connection(one, f"user-of-{one}", at=at))


def test_stale_connections_are_probed_expired_ones_end_and_the_rest_is_counted(client: Any) -> None:
    swept = Sweep(client)
    swept.open("silent", "gone", at=EpochMs(NOW - 600_001))
    swept.open("fresh", "marked", at=EpochMs(NOW - 1000))
    swept.connections.mark_stale("marked", NOW)
    swept.sweep()
    assert sorted(swept.probed) == ["gone", "marked", "silent"]
    assert swept.expired == []
    assert swept.reported == [3]
    swept.now = NOW + 3_600_000  # when the tokens have expired
    swept.sweep()
    assert sorted(swept.expired) == ["fresh", "gone", "marked", "silent"]
    assert swept.reported == [3, 0]


def test_a_connection_whose_user_notes_a_frame_is_not_probed(client: Any) -> None:
    swept = Sweep(client)
    swept.open("talks", "talked", at=EpochMs(NOW - 700_000))
    swept.open("failed", "proven", at=EpochMs(NOW - 100_000))
    swept.connections.mark_stale("failed", EpochMs(NOW - 2000))
    for one, ago in (("talks", 1), ("talked", 600_001), ("failed", 1000), ("proven", 1000)):
        swept.say(one, EpochMs(NOW - ago))
    swept.sweep()
    assert swept.probed == ["talked"]
    assert swept.reported == [4]


def test_activity_is_copied_to_a_connection_that_looks_stale_and_to_no_other(client: Any) -> None:
    """So its user is looked up again only after another such time."""
    swept = Sweep(client)
    swept.open("talks", at=EpochMs(NOW - 700_000))
    swept.open("new", at=EpochMs(NOW - 100_000))
    for one in ("talks", "new"):
        swept.say(one, EpochMs(NOW - 1000))
    swept.sweep()
    for one, at in (("talks", NOW - 1000), ("new", NOW - 100_000)):
        found = swept.connections.find(one)
        assert found is not None
        assert found.timestamp == at
    client.calls.clear()
    swept.now = NOW + 100_000
    swept.sweep()
    assert client.calls.count("batch_get_item") == 1  # the counts of the shards
    assert swept.probed == []


def test_the_users_of_a_page_are_read_together_and_each_once(client: Any) -> None:
    swept = Sweep(client)
    for number in range(100):
        opened = connection(f"c{number}", f"user-{number % 50}", at=EpochMs(NOW - 700_000))
        swept.connections.open(opened)
    client.calls.clear()
    swept.sweep()
    reads = client.calls.count("batch_get_item")
    assert reads <= SHARDS + SHARDS + 1  # for the connections, for the users, and the counts
    assert "get_item" not in client.calls
    assert len(swept.probed) == 100


def test_a_connection_that_is_silent_since_its_handshake_is_probed_by_one_sweep(
    client: Any,
) -> None:
    swept = Sweep(client, stale_after_seconds=4500)
    swept.open("before", at=EpochMs(NOW - 100_000))
    swept.sweep()
    assert swept.probed == ["before"]
    swept.open("between", at=EpochMs(NOW + 1000))
    swept.open("late", at=EpochMs(NOW + 599_000))  # the next sweep finds it in its handshake
    for sweep, probed in enumerate((["between"], ["late"], []), start=1):
        swept.probed.clear()
        swept.now = NOW + sweep * 600_000
        swept.sweep()
        assert swept.probed == probed


def test_no_connection_slips_between_two_sweeps(client: Any) -> None:
    swept = Sweep(client, stale_after_seconds=4500)
    opened = [f"c{number}" for number in range(40)]
    for number, one in enumerate(opened):
        swept.open(one, at=EpochMs(NOW + number * 30_000))
    for sweep in range(1, 4):
        swept.now = NOW + sweep * 600_000
        swept.sweep()
    assert set(swept.probed) == set(opened)


def lasting(connection_id: str) -> Connection:
    """Return a connection whose token outlives it."""
    opened = connection(connection_id, f"user-of-{connection_id}")
    return replace(opened, principal=replace(opened.principal, expires_at=LATER + 10_000))


def test_a_client_that_sends_a_heartbeat_an_hour_is_never_probed_once_it_said_something(
    client: Any,
) -> None:
    swept = Sweep(client, stale_after_seconds=4500)
    opened = lasting("idle")
    swept.connections.open(opened)
    swept.say("idle", EpochMs(NOW + 1), opened)
    for sweep in range(1, 12):
        swept.now = NOW + sweep * 600_000
        if sweep % 6 == 0:
            activity = swept.connections.activity
            activity.record_heartbeat("idle", opened.principal, EpochMs(swept.now))
        swept.sweep()
    assert swept.probed == []


@pytest.mark.parametrize("last", ["nothing", "a frame", "a heartbeat"])
def test_a_dead_connection_is_probed_within_90_minutes_of_its_last_activity(
    client: Any, last: str
) -> None:
    swept = Sweep(client, stale_after_seconds=4500)
    opened = lasting("dead")
    swept.connections.open(opened)
    if last == "a frame":
        swept.say("dead", EpochMs(NOW + 1), opened)
    if last == "a heartbeat":
        swept.connections.activity.record_heartbeat("dead", opened.principal, EpochMs(NOW + 1))
    while not swept.probed:
        swept.now += 600_000
        swept.sweep()
    assert swept.now <= NOW + 90 * 60_000


def test_the_next_sweep_continues_one_that_ran_out_of_time(client: Any) -> None:
    """Each has the time for one page of one shard, and each shard has some ten pages."""
    swept = Sweep(client)
    ids = [f"c{number}" for number in range(40)]
    swept.open(*ids, at=EpochMs(NOW - 600_001))
    sweeps = 0
    while not swept.reported:
        swept.sweep(OnePageDeadline(), page_items=1)
        sweeps += 1
        assert sweeps < 1000
    assert sweeps >= 40
    assert set(swept.probed) == set(ids)
    assert swept.reported == [40]


def test_a_shard_is_swept_by_one_sweep_at_a_time_until_that_dies(client: Any) -> None:
    swept, other = Sweep(client), Sweep(client)
    swept.open("silent", at=EpochMs(NOW - 600_001))
    for shard in CONNECTIONS:
        assert other.progress.claim(shard) is not None
    swept.sweep()
    assert (swept.probed, swept.reported) == ([], [])
    swept.now += LEASE_MS + 1
    swept.sweep()
    assert swept.probed == ["silent"]


def test_users_lose_the_ids_of_lost_connections_within_an_hour(client: Any) -> None:
    swept = Sweep(client)
    swept.open("there", "lost")
    swept.sweep()
    client.delete_item(TableName=LIFE.connections, Key={"connectionId": {"S": "lost"}})
    swept.now += USERS_INTERVAL_MS - 1
    swept.sweep()
    assert "connections" in user_item(client, "user-of-lost")
    swept.now += 2
    swept.sweep()
    assert "connections" not in user_item(client, "user-of-lost")
    assert user_item(client, "user-of-there")["connections"] == {"SS": ["there"]}


def user_item(client: Any, user: str) -> Any:
    key = {"user": {"S": user_key(None, user)}}
    return client.get_item(TableName=LIFE.users, Key=key, ConsistentRead=True)["Item"]


def test_an_item_that_is_not_heralds_is_skipped_and_kept(client: Any) -> None:
    swept = Sweep(client)
    swept.open("silent", at=EpochMs(NOW - 600_001))
    client.put_item(TableName=LIFE.connections, Item={"connectionId": {"S": "foreign"}})
    swept.sweep()
    assert swept.probed == ["silent"]
    assert "Item" in client.get_item(
        TableName=LIFE.connections, Key={"connectionId": {"S": "foreign"}}
    )


def test_an_idle_sweep_costs_a_page_and_two_writes_for_each_shard(client: Any) -> None:
    swept = Sweep(client)
    swept.sweep()
    client.calls.clear()
    swept.sweep()
    refused = SHARDS  # claims of the users' shards, which are not due
    assert client.calls.count("scan") == SHARDS
    assert client.calls.count("update_item") == 2 * SHARDS + refused
    assert client.calls.count("batch_get_item") == 1
