"""The sweep's own ways: pages, shards, resuming, what it reports; what it mends, in `test_life`."""

import time
from typing import Any
from unittest.mock import Mock

import pytest

from chalicelib.auth.principal import user_key
from chalicelib.delivery.frames import PROBE
from chalicelib.delivery.parcel import Outcome
from chalicelib.protocol.reports import Result
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Store
from chalicelib.store.items import Recipient
from chalicelib.store.memberships import Memberships
from chalicelib.websocket import sweep as sweep_module
from chalicelib.websocket.sweep import CONNECTIONS, SHARDS, USERS_EVERY_MS, Sweeper
from tests.support.tables import NOW, Counted, connection, limiter
from tests.support.world import LIFE

LONG = 1000.0


@pytest.fixture
def client(life: Any) -> Any:
    return Counted(life)


class Sweep:
    """A sweeper, and what it did."""

    def __init__(self, client: Any) -> None:
        self.now = NOW
        self.probed: list[str] = []
        self.expired: list[str] = []
        self.reported: list[int] = []
        this: Any = self  # stands in for OutcomeRecorder and Disconnector
        store = Store(client, LIFE)
        self.connections = Connections(
            store,
            limit=10,
            connect_limiter=limiter("connectDue"),
            message_limiter=limiter("messageDue"),
            memberships=Memberships(store, seconds=0),
            metrics=Metrics("test"),
        )
        self.sweeper = Sweeper(
            store,
            connections=self.connections,
            outcome_recorder=this,
            disconnector=this,
            stale_after_seconds=600,
            now=lambda: self.now,
            report=self.reported.append,
        )

    def sweep(self, seconds: float = LONG) -> None:
        self.sweeper.sweep(time.monotonic() + seconds)

    def probe(self, recipients: list[Recipient], deadline: float) -> list[Outcome]:
        self.probed += [one.connection_id for one in recipients]
        return [
            Outcome(one, PROBE, Result.GONE if "gone" in one.connection_id else Result.DELIVERED,
                    "", 1)
            for one in recipients
        ]  # fmt: skip

    def disconnect_expired(self, recipients: list[Recipient], deadline: float) -> None:
        self.expired += [one.connection_id for one in recipients]

    def open(self, *ids: str, at: int = NOW) -> None:
        for one in ids:
            self.connections.open(connection(one, f"user-of-{one}", at=at))


def test_who_is_asked_who_is_ended_and_how_many_are_active(client: Any) -> None:
    swept = Sweep(client)
    swept.open("silent", "gone", at=NOW - 600_001)
    swept.open("fresh", "marked", at=NOW - 1000)
    swept.connections.mark_stale("marked")
    swept.sweep()
    assert sorted(swept.probed) == ["gone", "marked", "silent"]
    assert swept.expired == []
    assert swept.reported == [3]
    swept.now = NOW + 3_600_000  # when the tokens have expired
    swept.sweep()
    assert sorted(swept.expired) == ["fresh", "gone", "marked", "silent"]
    assert swept.reported == [3, 0]


def test_a_sweep_that_is_short_of_time_is_continued(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With time for one page of one shard at a time, of which each has some ten."""
    monkeypatch.setattr(sweep_module, "PAGE_ITEMS", 1)
    swept = Sweep(client)
    ids = [f"c{number}" for number in range(40)]
    swept.open(*ids, at=NOW - 600_001)
    sweeps = 0
    while not swept.reported:
        monkeypatch.setattr(sweep_module, "_is_short", Mock(side_effect=[False, True, True]))
        swept.sweep()
        sweeps += 1
        assert sweeps < 1000
    assert sweeps >= 40
    assert set(swept.probed) == set(ids)
    assert swept.reported == [40]


def test_a_shard_is_swept_by_one_at_a_time_until_it_dies(client: Any) -> None:
    swept, other = Sweep(client), Sweep(client)
    swept.open("silent", at=NOW - 600_001)
    for shard in CONNECTIONS:
        assert other.sweeper._claim(shard) is not None
    swept.sweep()
    assert swept.probed == swept.reported == []
    swept.now += sweep_module.LEASE_MS + 1
    swept.sweep()
    assert swept.probed == ["silent"]


def test_users_are_looked_through_each_hour_and_untied_from_what_is_no_more(client: Any) -> None:
    swept = Sweep(client)
    swept.open("there", "lost")
    swept.sweep()
    client.delete_item(TableName=LIFE.connections, Key={"connectionId": {"S": "lost"}})
    swept.now += USERS_EVERY_MS - 1
    swept.sweep()
    assert "connections" in user_item(client, "user-of-lost")
    swept.now += 2
    swept.sweep()
    assert "connections" not in user_item(client, "user-of-lost")
    assert user_item(client, "user-of-there")["connections"] == {"SS": ["there"]}


def user_item(client: Any, user: str) -> Any:
    key = {"user": {"S": user_key(None, user)}}
    return client.get_item(TableName=LIFE.users, Key=key, ConsistentRead=True)["Item"]


def test_what_is_not_heralds_stops_nothing(client: Any) -> None:
    swept = Sweep(client)
    swept.open("silent", at=NOW - 600_001)
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
