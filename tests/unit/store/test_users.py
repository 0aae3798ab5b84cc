"""Users' presence, and what they are charged for."""

from typing import Any

import pytest

from chalicelib.auth.principal import Principal, user_key
from chalicelib.clock import EpochMs
from chalicelib.errors import RateLimited
from chalicelib.store.rate_limits import Rate
from chalicelib.store.schema import USER_SECONDS, connection_key, user_item_key
from tests.support.tables import LATER, NOW, TABLES, Counted, connection, connections_of, users_of


def test_a_user_who_never_connected_is_offline(dynamodb: Any, user: str) -> None:
    presence = users_of(dynamodb).presence(None, user)
    assert presence.to_dict() == {
        "userId": user,
        "status": "offline",
        "lastSeen": None,
        "connections": 0,
    }


def test_presence_counts_stored_connections_with_the_oldest_first(dynamodb: Any, user: str) -> None:
    connections, users = connections_of(dynamodb), users_of(dynamodb)
    for number in (2, 0, 1):
        connections.open(connection(f"{user}-{number}", user, "acme", at=EpochMs(NOW + number)))
    dynamodb.delete_item(TableName=TABLES.connections, Key=connection_key(f"{user}-1"))
    presence = users.presence("acme", user)
    assert [one.connection_id for one in presence.connections] == [f"{user}-0", f"{user}-2"]
    assert presence.to_dict()["status"] == "online"
    assert users.presence(None, user).connections == []


def test_presence_shows_the_activity_that_the_users_item_notes(dynamodb: Any, user: str) -> None:
    connections, users = connections_of(dynamodb), users_of(dynamodb)
    first, second = (connection(f"{user}-{number}", user) for number in (1, 2))
    for one in (first, second):
        connections.open(one)
    connections.mark_stale(first.connection_id, EpochMs(NOW + 1))
    connections.activity.record_frame(first.connection_id, first.principal, EpochMs(NOW + 5))
    presence = users.presence(None, user)
    shown = [one.to_dict(EpochMs(NOW + 6), 600) for one in presence.connections]
    assert [(one["status"], one["timestamp"]) for one in shown] == [
        ("active", NOW + 5),
        ("active", NOW),
    ]
    assert presence.last_seen == NOW + 5


def test_a_heartbeat_is_seen_without_a_write_of_the_users_item(dynamodb: Any, user: str) -> None:
    connections, users = connections_of(dynamodb), users_of(dynamodb)
    opened = connection(user, user)
    connections.open(opened)
    connections.activity.record_heartbeat(user, opened.principal, EpochMs(NOW + 5))
    assert users.presence(None, user).last_seen == NOW + 5
    connections.remove(opened.recipient, EpochMs(NOW + 6))
    assert users.presence(None, user).last_seen == NOW + 6


def test_a_charge_renews_the_ttl_of_the_users_item(dynamodb: Any, user: str) -> None:
    users_of(dynamodb).charge(Principal(user, LATER), NOW, 1)
    key = user_item_key(user_key(None, user))
    item = dynamodb.get_item(TableName=TABLES.users, Key=key, ConsistentRead=True)["Item"]
    assert int(item["expiresAt"]["N"]) == NOW // 1000 + USER_SECONDS


def test_a_read_takes_one_call_and_none_while_it_is_known_to_be_refused(
    dynamodb: Any, user: str
) -> None:
    client: Any = Counted(dynamodb)
    users, reader = users_of(client, reads=Rate.per_second(1, 2)), Principal(user, LATER)
    for _ in range(2):
        users.charge_read(reader, NOW)
    assert client.calls == ["update_item"] * 2
    client.calls.clear()
    for _ in range(100):
        with pytest.raises(RateLimited):
            users.charge_read(reader, NOW)
    assert client.calls == []
    users.charge(reader, NOW, 1)  # sending has a rate of its own
