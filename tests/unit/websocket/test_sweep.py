"""Pages, shards and reports of the sweep. `test_connection_lifecycles.py` shows what it repairs."""

import math
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
from chalicelib.store.items import Recipient
from chalicelib.store.memberships import Memberships
from chalicelib.store.sweep_progress import (
    CONNECTIONS,
    LEASE_MS,
    SHARDS,
    USERS_INTERVAL_MS,
    SweepProgress,
)
from chalicelib.websocket.sweep import PAGE_ITEMS, Sweeper
from tests.support.tables import NOW, Counted, connection, limiter
from tests.support.world import LIFE

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

    def __init__(self, client: Any) -> None:
        self.now: int = NOW
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
            stale_after_seconds=600,
            metrics=this,
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
