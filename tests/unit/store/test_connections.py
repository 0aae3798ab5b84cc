"""The transitions of connections, over both emulators of DynamoDB."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from chalicelib.auth.principal import Principal, Scope, user_key
from chalicelib.clock import EpochMs
from chalicelib.errors import (
    BadRequest,
    ConnectionGone,
    QuotaExceeded,
    RateLimited,
    TooManyConnections,
    Unavailable,
)
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.connections import MAX_GROUPS, Connections
from chalicelib.store.handshakes import LimitReached
from chalicelib.store.items import HANDSHAKE_SECONDS, Connection
from chalicelib.store.rate_limits import Rate
from chalicelib.store.schema import MAX_CONNECTION_SECONDS, USER_SECONDS
from chalicelib.store.users import Users
from tests.support.tables import (
    LATER,
    NOW,
    TABLES,
    Counted,
    connection,
    connections_of,
    recipient,
    users_of,
)

AFTER_HANDSHAKE = EpochMs(NOW + HANDSHAKE_SECONDS * 1000 + 1)
"""A time by which a connection opened at NOW has certainly finished its handshake."""


@pytest.fixture
def client(dynamodb: Any) -> Counted:
    return Counted(dynamodb)


@pytest.fixture
def connections(client: Any) -> Connections:
    return connections_of(client)


@pytest.fixture
def users(dynamodb: Any) -> Users:
    return users_of(dynamodb)


def online(users: Users, user: str) -> int:
    return len(users.presence(None, user).connections)


def stored(dynamodb: Any, connection_id: str) -> Any:
    key = {"connectionId": {"S": connection_id}}
    answer = dynamodb.get_item(TableName=TABLES.connections, Key=key, ConsistentRead=True)
    return answer.get("Item")


def user_item(dynamodb: Any, user: str, tenant: str | None = None) -> Any:
    key = {"user": {"S": user_key(tenant, user)}}
    return dynamodb.get_item(TableName=TABLES.users, Key=key, ConsistentRead=True).get("Item")


def members(dynamodb: Any, group: str, tenant: str | None = None) -> list[str]:
    answer = dynamodb.query(
        TableName=TABLES.groups,
        KeyConditionExpression="#group = :group",
        ExpressionAttributeNames={"#group": "group"},
        ExpressionAttributeValues={":group": {"S": user_key(tenant, group)}},
    )
    return sorted(item["connectionId"]["S"] for item in answer["Items"])


# --- Costs


def test_connecting_takes_three_calls_and_disconnecting_one_more_during_the_handshake(
    client: Counted, connections: Connections, users: Users, user: str
) -> None:
    connections.open(connection(user, user))
    assert online(users, user) == 1
    assert connections.remove(recipient(user, user), EpochMs(NOW + 5))
    assert (online(users, user), users.presence(None, user).last_seen) == (0, NOW + 5)
    tombstone = "update_item"
    assert client.calls == [
        *("put_item", "batch_write_item", "update_item"),
        *(tombstone, "delete_item", "batch_write_item", "update_item"),
    ]


def test_removing_a_connection_takes_four_calls_if_it_is_in_groups(
    client: Counted, connections: Connections, user: str
) -> None:
    """Whatever was guessed, they are known before anything is deleted."""
    for guess, finds in (({"a", "b"}, "get_item"), ((), "delete_item"), ({"c"}, "get_item")):
        opened = connection(f"{user}-{len(guess)}", user, None, "a", "b")
        connections.open(opened)
        client.calls.clear()
        assert connections.remove(opened.recipient, AFTER_HANDSHAKE, guess)
        assert client.calls == [finds, "batch_write_item", "delete_item", "update_item"]


def test_a_message_takes_one_call_and_so_does_its_refusal(
    client: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    busy = connections_of(client, messages=Rate.per_second(1, 5))
    busy.open(opened)
    client.calls.clear()
    for moment in (0, 10, 20, 30, 40, 50_000):
        busy.record_activity(user, opened.principal, EpochMs(NOW + moment), 1)
    assert client.calls == ["transact_write_items"] * 6
    for _ in range(4):
        busy.record_activity(user, opened.principal, EpochMs(NOW + 50_000), 1)
    client.calls.clear()
    with pytest.raises(RateLimited):
        busy.record_activity(user, opened.principal, EpochMs(NOW + 50_000), 1)
    assert client.calls == []  # the usage is cached
    elsewhere = connections_of(client, messages=Rate.per_second(1, 5))
    with pytest.raises(RateLimited):
        elsewhere.record_activity(user, opened.principal, EpochMs(NOW + 50_000), 1)
    assert client.calls == ["transact_write_items"]


# --- Opening and removing


def test_opening_or_removing_a_connection_twice_changes_nothing(
    connections: Connections, users: Users, user: str
) -> None:
    for _ in range(2):
        connections.open(connection(f"{user}-1", user))
    connections.open(connection(f"{user}-2", user))
    connections.open(connection(f"{user}-3", user))
    connections.open(connection(f"{user}-3", user))  # at the limit, but it is open already
    assert online(users, user) == 3
    assert connections.remove(recipient(f"{user}-1", user), NOW)
    assert not connections.remove(recipient(f"{user}-1", user), NOW)
    assert online(users, user) == 2


def test_opening_a_connection_again_keeps_the_groups_it_joined_since(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    connections.open(opened)
    connections.join(opened, user, EpochMs(NOW + 1))
    connections.open(opened)
    assert stored(dynamodb, user)["groups"] == {"SS": [user]}


def test_a_connection_removed_before_or_during_its_connect_stays_closed(
    dynamodb: Any, connections: Connections, users: Users, user: str
) -> None:
    late, twice = recipient(f"{user}-late", user), recipient(f"{user}-twice", user)
    connections.remove(late, EpochMs(NOW + 1000))
    connections.open(connection(twice.connection_id, user))
    connections.remove(twice, EpochMs(NOW + 2000))
    for early in (late, twice):
        with pytest.raises(ConnectionGone):
            connections.open(connection(early.connection_id, user))
    assert online(users, user) == 0
    assert stored(dynamodb, late.connection_id) is None


def test_tombstones_do_not_pile_up(dynamodb: Any, connections: Connections, user: str) -> None:
    for minute in range(12):
        at = EpochMs(NOW + minute * 60_000)
        for number in range(2):
            opened = connection(f"{user}-{minute}-{number}", user, at=at)
            connections.open(opened)
            connections.remove(opened.recipient, EpochMs(at + 1))
    kept = {
        one
        for name, value in user_item(dynamodb, user).items()
        if name.startswith("closed")
        for one in value["SS"]
    }
    assert kept == {f"{user}-{minute}-{number}" for minute in (10, 11) for number in range(2)}


def test_removing_an_old_unknown_connection_writes_nothing(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    assert not connections.remove(recipient(user, user), AFTER_HANDSHAKE)
    assert user_item(dynamodb, user) is None


def test_removing_a_connection_without_an_item_unties_it_from_its_user(
    dynamodb: Any, connections: Connections, users: Users, user: str
) -> None:
    connections.open(connection(user, user))
    dynamodb.delete_item(TableName=TABLES.connections, Key={"connectionId": {"S": user}})
    assert online(users, user) == 0  # it is not counted even before
    assert connections.remove(recipient(user, user), AFTER_HANDSHAKE)
    assert not connections.remove(recipient(user, user), AFTER_HANDSHAKE)
    assert "connections" not in user_item(dynamodb, user)
    assert f"@{user}" not in user_item(dynamodb, user)


def test_connections_memberships_and_users_expire(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    connections.open(connection(user, user, None, user))
    [membership] = dynamodb.query(
        TableName=TABLES.groups,
        KeyConditionExpression="#group = :group",
        ExpressionAttributeNames={"#group": "group"},
        ExpressionAttributeValues={":group": {"S": user_key(None, user)}},
    )["Items"]
    for item in (stored(dynamodb, user), membership):
        after = int(item["expiresAt"]["N"]) - NOW // 1000 - MAX_CONNECTION_SECONDS
        assert 0 < after <= 600
    assert int(user_item(dynamodb, user)["expiresAt"]["N"]) > NOW // 1000 + 86400


# --- The limit


def test_a_connection_over_the_limit_changes_nothing_and_reports_the_oldest(
    dynamodb: Any, connections: Connections, users: Users, user: str
) -> None:
    for number in (2, 0, 1):
        connections.open(connection(f"{user}-{number}", user, at=EpochMs(NOW + number)))
    with pytest.raises(LimitReached) as reached:
        connections.open(connection(f"{user}-3", user, None, user))
    ids = [one.connection_id for one in reached.value.recipients]
    assert ids == [f"{user}-0", f"{user}-1", f"{user}-2"]
    assert online(users, user) == 3
    assert stored(dynamodb, f"{user}-3") is None
    assert members(dynamodb, user) == []
    connections.remove(recipient(f"{user}-0", user), NOW)
    connections.open(connection(f"{user}-4", user))


def test_the_limit_is_exact_in_a_race(ministack: Any, user: str) -> None:
    connections = connections_of(ministack, limit=10)

    def attempt(number: int) -> bool:
        try:
            connections.open(connection(f"{user}-{number}", user))
        except TooManyConnections:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        accepted = sum(threads.map(attempt, range(100)))
    assert accepted == 10 == online(users_of(ministack), user)


def test_a_user_who_connects_too_often_is_refused(client: Any, users: Users, user: str) -> None:
    connections = connections_of(client, limit=9, connects=Rate.per_minute(3))
    for number in range(3):
        connections.open(connection(f"{user}-{number}", user))
    with pytest.raises(RateLimited) as limited:
        connections.open(connection(f"{user}-3", user, at=EpochMs(NOW + 1000)))
    assert limited.value.retry_after == pytest.approx(19)
    connections.open(connection(f"{user}-4", user, at=EpochMs(NOW + 20_000)))
    assert online(users, user) == 4


# --- Active and stale


def test_activity_or_a_probe_makes_a_stale_connection_active(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    def state() -> tuple[str, str]:
        item = stored(dynamodb, user)
        return item["status"]["S"], item["timestamp"]["N"]

    opened = connection(user, user)
    connections.open(opened)
    connections.mark_stale(user)
    assert state() == ("stale", str(NOW))
    connections.record_activity(user, opened.principal, EpochMs(NOW + 1), 0)
    assert state() == ("active", str(NOW + 1))
    assert user_item(dynamodb, user)["lastSeen"]["N"] == str(NOW + 1)
    connections.mark_stale(user)
    connections.revive(user, EpochMs(NOW + 2))
    assert state() == ("active", str(NOW + 2))


def test_no_transition_recreates_a_terminated_connection(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    connections.mark_stale(user)
    connections.revive(user, NOW)
    gone = connection(user, user)
    for change in (
        lambda: connections.record_activity(user, gone.principal, NOW, 1),
        lambda: connections.join(gone, user, EpochMs(NOW + 1)),
        lambda: connections.leave(gone, user, EpochMs(NOW + 1)),
        lambda: connections.refresh(gone, gone.principal, EpochMs(NOW + 1)),
    ):
        with pytest.raises(ConnectionGone):
            change()
    assert stored(dynamodb, user) is None
    assert user_item(dynamodb, user) is None
    assert members(dynamodb, user) == []


def test_a_connection_is_found_as_it_was_opened(connections: Connections, user: str) -> None:
    opened = connection(user, user, "acme", "a", "b*")
    connections.open(opened)
    assert connections.find(user) == opened
    assert connections.find("unknown") is None


# --- Groups


def test_memberships_end_when_left_or_with_their_connection(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user, "t", f"{user}-a")
    connections.open(opened)
    for _ in range(2):
        connections.join(opened, f"{user}-b", EpochMs(NOW + 1))
    connections.leave(opened, f"{user}-never", EpochMs(NOW + 1))
    assert members(dynamodb, f"{user}-a", "t") == members(dynamodb, f"{user}-b", "t") == [user]
    assert members(dynamodb, f"{user}-a") == []
    for _ in range(2):
        connections.leave(opened, f"{user}-a", EpochMs(NOW + 1))
    assert members(dynamodb, f"{user}-a", "t") == []
    connections.remove(recipient(user, user, "t"), NOW)
    assert members(dynamodb, f"{user}-b", "t") == []


def test_one_group_too_many_is_refused(connections: Connections, user: str) -> None:
    groups = [f"{user}-{number}" for number in range(MAX_GROUPS)]
    opened = connection(user, user, None, *groups)
    connections.open(opened)
    connections.join(opened, groups[7], EpochMs(NOW + 1))
    with pytest.raises(BadRequest, match="at most 50 groups"):
        connections.join(opened, "another", EpochMs(NOW + 1))
    assert connections.remove(opened.recipient, NOW, groups)


# --- Refresh


def refreshed(opened: Connection, **changes: Any) -> Principal:
    return replace(opened.principal, expires_at=LATER + 3600, **changes)


def test_refresh_replaces_the_principal_and_leaves_groups_it_does_not_allow(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user, None, f"{user}-a", f"{user}-b")
    connections.open(opened)
    connections.join(opened, f"{user}-c", EpochMs(NOW + 1))
    renewed = refreshed(opened, groups=(f"{user}-a", f"{user}-c*"))
    connections.refresh(opened, renewed, EpochMs(NOW + 1))
    found = connections.find(user)
    assert found is not None
    assert found.principal == renewed
    assert found.groups == {f"{user}-a", f"{user}-c"}
    assert members(dynamodb, f"{user}-b") == []
    assert stored(dynamodb, user)["tokenUntil"] == {"N": str(LATER + 3600)}
    assert user_item(dynamodb, user)[f"@{user}"] == stored(dynamodb, user)["reach"]
    connections.refresh(found, refreshed(opened, groups=()), EpochMs(NOW + 1))
    assert "groups" not in stored(dynamodb, user)
    assert members(dynamodb, f"{user}-a") == []


def test_a_refreshed_principal_is_cached(client: Any, connections: Connections, user: str) -> None:
    opened = connection(user, user)
    connections.open(opened)
    renewed = refreshed(opened, scopes=frozenset({Scope.MESSAGES_SEND}))
    connections.refresh(opened, renewed, EpochMs(NOW + 1))
    client.calls.clear()
    assert connections.record_activity(user, opened.principal, NOW, 0) == renewed
    assert client.calls == ["transact_write_items"]
    elsewhere = connections_of(client)
    assert elsewhere.record_activity(user, opened.principal, NOW, 0) == renewed
    client.calls.clear()
    assert elsewhere.record_activity(user, opened.principal, NOW, 0) == renewed
    assert client.calls == ["transact_write_items"]


def test_a_user_is_charged_by_all_environments_together(dynamodb: Any, user: str) -> None:
    """Neither of two environments knows what the other has charged."""
    rate = Rate.per_minute(1)
    one, other = (connections_of(dynamodb, connects=rate, messages=rate) for _ in range(2))
    opened = connection(f"{user}-1", user)
    one.open(opened)
    with pytest.raises(RateLimited):
        other.open(connection(f"{user}-2", user))
    other.open(connection(f"{user}-3", f"{user}-other"))
    one.record_activity(opened.connection_id, opened.principal, NOW, 0)
    with pytest.raises(RateLimited):
        other.record_activity(opened.connection_id, opened.principal, NOW, 0)
    for environment in (one, other):
        elsewhere = f"{user}-3", Principal(f"{user}-other", LATER)
        with pytest.raises(RateLimited) if environment is other else nullcontext():
            environment.record_activity(*elsewhere, NOW, 0)


# --- Refused frames


def test_refused_frames_are_counted_by_all_environments_together(
    client: Any, connections: Connections, user: str
) -> None:
    opened, elsewhere = connection(user, user), connections_of(client)
    connections.open(opened)
    client.calls.clear()
    counts = [environment.count_refusal(user) for environment in (connections, elsewhere) * 2]
    assert counts == [1, 2, 3, 4]
    assert client.calls == ["update_item"] * 4


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_an_accepted_frame_starts_the_count_again_wherever_it_arrives(
    dynamodb: Any, client: Any, connections: Connections, user: str, where: str
) -> None:
    opened = connection(user, user)
    connections.open(opened)
    accepting = connections if where == "here" else connections_of(client)
    for _ in range(2):
        assert [connections.count_refusal(user) for _ in range(3)] == [1, 2, 3]
        accepting.record_activity(user, opened.principal, NOW, 0)
        accepting.end_refusals(user)
        assert "refused" not in stored(dynamodb, user)


def test_accepted_frames_take_one_call_each_except_the_first_after_a_refusal(
    client: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    connections.open(opened)

    def calls_of_a_frame(environment: Connections) -> list[str]:
        client.calls.clear()
        environment.record_activity(user, opened.principal, NOW, 0)
        environment.end_refusals(user)
        return list(client.calls)

    usual = ["transact_write_items"]
    assert calls_of_a_frame(connections) == usual
    connections.count_refusal(user)
    assert calls_of_a_frame(connections) == [*usual, "update_item"]
    assert calls_of_a_frame(connections) == usual
    elsewhere = connections_of(client)
    calls_of_a_frame(elsewhere)
    connections.count_refusal(user)
    assert calls_of_a_frame(elsewhere) == [*usual, *usual, "update_item"]
    assert calls_of_a_frame(elsewhere) == usual


def test_a_frame_that_will_be_refused_takes_no_call_to_learn_of_earlier_ones(
    client: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    connections.open(opened)
    connections.count_refusal(user)
    elsewhere = connections_of(client)
    client.calls.clear()
    elsewhere.record_activity(user, opened.principal, NOW, 0, refused=True)
    assert client.calls == ["transact_write_items"]


def test_refusals_are_not_counted_for_a_terminated_connection(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    connections.open(opened)
    connections.count_refusal(user)
    connections.remove(opened.recipient, NOW)
    with pytest.raises(ConnectionGone):
        connections.count_refusal(user)
    connections.end_refusals(user)
    assert stored(dynamodb, user) is None


def test_a_frame_is_charged_its_units(dynamodb: Any, user: str) -> None:
    limited = connections_of(dynamodb, messages=Rate.per_second(1, 5))
    opened = connection(user, user)
    limited.open(opened)
    limited.record_activity(user, opened.principal, NOW, 1, units=9)
    with pytest.raises(RateLimited) as refused:
        limited.record_activity(user, opened.principal, NOW, 0)
    assert refused.value.retry_after == pytest.approx(9 - 4)


def test_the_messages_of_a_frame_count_towards_the_quota(dynamodb: Any, user: str) -> None:
    limited = connections_of(dynamodb, quota=2)
    opened = connection(user, user)
    limited.open(opened)
    for messages in (2, 0):
        limited.record_activity(user, opened.principal, NOW, messages)
    with pytest.raises(QuotaExceeded):
        limited.record_activity(user, opened.principal, NOW, 1)


def test_a_terminated_connection_is_told_to_connect_again(
    connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    for say in (
        lambda: connections.record_activity(user, opened.principal, NOW, 0),
        lambda: connections.join(opened, "team", NOW),
        lambda: connections.leave(opened, "team", NOW),
        lambda: connections.refresh(opened, opened.principal, NOW),
    ):
        with pytest.raises(ConnectionGone) as gone:
            say()
        assert gone.value.detail == "the connection has ended: connect again"
    connections.remove(opened.recipient, NOW)
    with pytest.raises(ConnectionGone) as gone:
        connections.open(opened)
    assert gone.value.detail == "the client has disconnected already"


def test_the_error_names_the_limit_and_the_users_connections(
    connections: Connections, user: str
) -> None:
    for number in range(3):
        connections.open(connection(f"{user}-{number}", user, "acme", at=EpochMs(NOW + number)))
    with pytest.raises(LimitReached) as reached:
        connections.open(connection(f"{user}-4", user, "acme"))
    assert reached.value.detail == "the limit of 3 connections per user is reached"
    assert [(one.user_id, one.tenant) for one in reached.value.recipients] == [(user, "acme")] * 3


def test_a_removal_is_counted_with_the_duration_of_the_connection(
    dynamodb: Any, user: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics("test")
    connections = connections_of(dynamodb, metrics=metrics)
    opened = connection(user, user)
    connections.open(opened)
    assert connections.remove(opened.recipient, EpochMs(NOW + 1500))
    assert not connections.remove(opened.recipient, EpochMs(NOW + 2500))
    metrics.flush()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["ConnectionsClosed"] for line in printed if "ConnectionsClosed" in line] == [[1.0]]
    assert [line["ConnectionDuration"] for line in printed if "ConnectionDuration" in line] == [
        [1500.0]
    ]


def test_a_group_is_joined_when_it_is_first_joined(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    """Groups that a connection joins as it opens have no time of their own."""
    opened, team = connection(user, user, None, "own"), f"team-of-{user}"
    connections.open(opened)
    connections.join(opened, team, EpochMs(NOW + 1))
    joined = connections.find(user)
    assert joined is not None
    connections.join(joined, team, EpochMs(NOW + 2))
    connections.join(joined, "own", EpochMs(NOW + 3))
    item = stored(dynamodb, user)
    assert {name: item[name] for name in item if name.startswith("+")} == {
        f"+{team}": {"N": str(NOW + 1)}
    }
    connections.leave(joined, team, EpochMs(NOW + 4))
    item = stored(dynamodb, user)
    assert item["groups"] == {"SS": ["own"]}
    assert not any(name.startswith("+") for name in item)
    assert members(dynamodb, team) == []


class Restless:
    """A DynamoDB client: before each of its conditional writes to the connection, the connection
    joins another group."""

    def __init__(self, client: Any, opened: Connection) -> None:
        self._client = client
        self._beside = connections_of(client)
        self._opened = opened
        self._numbers = count()

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._client, operation)
        if operation not in ("transact_write_items", "delete_item"):
            return call

        def restless(**parameters: Any) -> Any:
            self.change()
            return call(**parameters)

        return restless

    def change(self) -> None:
        self._beside.join(self._opened, f"group-{next(self._numbers)}", NOW)


def test_groups_that_keep_changing_raise_unavailable(dynamodb: Any, user: str) -> None:
    opened = connection(user, user)
    connections_of(dynamodb).open(opened)
    restless = connections_of(Restless(dynamodb, opened))
    with pytest.raises(Unavailable) as unavailable:
        restless.remove(opened.recipient, AFTER_HANDSHAKE)
    assert unavailable.value.detail == "the connection's groups are changing too fast"
    with pytest.raises(Unavailable) as unavailable:
        restless.refresh(opened, opened.principal, NOW)
    assert unavailable.value.detail == "the connection's groups are changing too fast"


def test_the_principals_refreshed_last_are_cached(dynamodb: Any, user: str) -> None:
    client: Any = Counted(dynamodb)
    connections = connections_of(client, cached_connections=2)
    opened = [connection(f"{user}-{number}", user) for number in range(3)]
    for one in opened:
        connections.open(one)
        connections.refresh(one, refreshed(one), NOW)
    client.calls.clear()
    calls = []
    for one in reversed(opened):
        connections.record_activity(one.connection_id, one.principal, NOW, 0)
        calls.append(len(client.calls))
    assert calls == [1, 2, 4]  # the one that is not cached takes a second call


def test_a_connection_is_read_consistently(connections: Connections, user: str) -> None:
    class Asked:
        def get_item(self, **parameters: Any) -> Any:
            assert parameters["ConsistentRead"] is True
            return {}

    assert connections_of(Asked()).find(user) is None


def test_a_user_expires_after_90_days(dynamodb: Any, connections: Connections, user: str) -> None:
    connections.open(connection(user, user))
    expires = int(user_item(dynamodb, user)["expiresAt"]["N"])
    assert expires == NOW // 1000 + USER_SECONDS


def test_a_refresh_adds_nothing_else_to_the_users_item(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    connections.open(opened)
    before = user_item(dynamodb, user)
    connections.refresh(opened, refreshed(opened), NOW)
    after = user_item(dynamodb, user)
    assert after.keys() == before.keys()
    assert after["connections"] == {"SS": [user]}


class Renewing(Restless):
    """A DynamoDB client: before each of its transactions, the connection's token is refreshed."""

    def change(self) -> None:
        principal = replace(self._opened.principal, expires_at=LATER + 1 + next(self._numbers))
        self._beside.refresh(self._opened, principal, NOW)


def test_a_token_that_keeps_changing_raises_unavailable(dynamodb: Any, user: str) -> None:
    opened = connection(user, user)
    connections_of(dynamodb).open(opened)
    with pytest.raises(Unavailable) as unavailable:
        connections_of(Renewing(dynamodb, opened)).record_activity(user, opened.principal, NOW, 0)
    assert unavailable.value.detail == "the connection is changing too fast"
    assert unavailable.value.retry_after == 1.0
