"""The life of a connection, in both of the emulators of DynamoDB."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from botocore.exceptions import ClientError

from chalicelib.auth.principal import Principal, Scope, user_key
from chalicelib.errors import (
    BadRequest,
    ConnectionGone,
    Contended,
    QuotaExceeded,
    RateLimited,
    TooManyConnections,
    Unavailable,
)
from chalicelib.runtime.metrics import Metrics
from chalicelib.store import connections as connections_module
from chalicelib.store.connections import MAX_GROUPS, Connections, LimitReached
from chalicelib.store.dynamodb import CONFLICT_TRIES, Store
from chalicelib.store.items import (
    HANDSHAKE_SECONDS,
    MAX_CONNECTION_SECONDS,
    USER_SECONDS,
    Connection,
    Status,
)
from chalicelib.store.rate_limits import Rate
from chalicelib.store.users import Users
from tests.support.tables import (
    LATER,
    NOW,
    TABLES,
    Counted,
    connection,
    connections_of,
    meter,
    recipient,
)

GROWN_UP = NOW + HANDSHAKE_SECONDS * 1000 + 1
"""When a connection that was opened at NOW can't be in its handshake any more."""


@pytest.fixture
def client(dynamodb: Any) -> Counted:
    return Counted(dynamodb)


@pytest.fixture
def connections(client: Any) -> Connections:
    return connections_of(client)


@pytest.fixture
def users(dynamodb: Any) -> Users:
    return users_of(dynamodb)


def users_of(client: Any) -> Users:
    return Users(Store(client, TABLES), messages=meter("messageDue"), resumes=meter("resumeDue"))


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


# --- What it costs


def test_connecting_and_disconnecting_are_one_call_each(
    client: Counted, connections: Connections, users: Users, user: str
) -> None:
    connections.open(connection(user, user))
    assert online(users, user) == 1
    assert connections.remove(recipient(user, user), NOW + 5)
    assert (online(users, user), users.presence(None, user).last_seen) == (0, NOW + 5)
    assert client.calls == ["transact_write_items"] * 2


def test_with_groups_too_and_with_groups_that_were_not_known_it_is_one_more(
    client: Counted, connections: Connections, user: str
) -> None:
    for guess, calls in (({"a", "b"}, 2), ((), 3), ({"c"}, 3)):
        client.calls.clear()
        connections.open(connection(f"{user}-{calls}-{len(guess)}", user, None, "a", "b"))
        connections.remove(recipient(f"{user}-{calls}-{len(guess)}", user), GROWN_UP, guess)
        assert client.calls == ["transact_write_items"] * calls


def test_a_message_is_one_call_idle_or_busy_and_so_is_a_refusal(
    client: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    busy = connections_of(client, messages=Rate.per_second(1, 5))
    busy.open(opened)
    client.calls.clear()
    for moment in (0, 10, 20, 30, 40, 50_000):
        busy.record_activity(user, opened.principal, NOW + moment, 1)
    assert client.calls == ["transact_write_items"] * 6
    for _ in range(4):
        busy.record_activity(user, opened.principal, NOW + 50_000, 1)
    client.calls.clear()
    with pytest.raises(RateLimited):
        busy.record_activity(user, opened.principal, NOW + 50_000, 1)
    assert client.calls == []  # it is known already
    elsewhere = connections_of(client, messages=Rate.per_second(1, 5))
    with pytest.raises(RateLimited):
        elsewhere.record_activity(user, opened.principal, NOW + 50_000, 1)
    assert client.calls == ["transact_write_items"]


# --- Open and close


def test_what_comes_twice_changes_nothing(
    connections: Connections, users: Users, user: str
) -> None:
    for _ in range(2):
        connections.open(connection(f"{user}-1", user))
    connections.open(connection(f"{user}-2", user))
    connections.open(connection(f"{user}-3", user))
    connections.open(connection(f"{user}-3", user))  # at the limit, but it is counted already
    assert online(users, user) == 3
    assert connections.remove(recipient(f"{user}-1", user), NOW)
    assert not connections.remove(recipient(f"{user}-1", user), NOW)
    assert online(users, user) == 2


def test_connecting_again_keeps_what_was_joined_since(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    connections.open(opened)
    connections.join(opened, user, NOW + 1)
    connections.open(opened)
    assert stored(dynamodb, user)["groups"] == {"SS": [user]}


def test_a_disconnect_that_comes_before_or_within_connect_keeps_it_closed(
    dynamodb: Any, connections: Connections, users: Users, user: str
) -> None:
    late, twice = recipient(f"{user}-late", user), recipient(f"{user}-twice", user)
    connections.remove(late, NOW + 1000)
    connections.open(connection(twice.connection_id, user))
    connections.remove(twice, NOW + 2000)
    for early in (late, twice):
        with pytest.raises(ConnectionGone):
            connections.open(connection(early.connection_id, user))
    assert online(users, user) == 0
    assert stored(dynamodb, late.connection_id) is None


def test_the_ids_of_what_was_closed_early_do_not_pile_up(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    for minute in range(12):
        at = NOW + minute * 60_000
        for number in range(2):
            opened = connection(f"{user}-{minute}-{number}", user, at=at)
            connections.open(opened)
            connections.remove(opened.recipient, at + 1)
    kept = {
        one
        for name, value in user_item(dynamodb, user).items()
        if name.startswith("closed")
        for one in value["SS"]
    }
    assert kept == {f"{user}-{minute}-{number}" for minute in (10, 11) for number in range(2)}


def test_closing_what_is_unknown_and_old_writes_nothing(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    assert not connections.remove(recipient(user, user), GROWN_UP)
    assert user_item(dynamodb, user) is None


def test_untying_mends_a_set_whose_connection_is_no_more(
    dynamodb: Any, connections: Connections, users: Users, user: str
) -> None:
    connections.open(connection(user, user))
    dynamodb.delete_item(TableName=TABLES.connections, Key={"connectionId": {"S": user}})
    assert online(users, user) == 0  # nor is it counted before
    assert not connections.remove(recipient(user, user), GROWN_UP)
    assert "connections" not in user_item(dynamodb, user)
    assert f"@{user}" not in user_item(dynamodb, user)


def test_every_item_that_can_be_orphaned_expires(
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


def test_over_the_limit_nothing_changes_and_the_oldest_is_known(
    dynamodb: Any, connections: Connections, users: Users, user: str
) -> None:
    for number in (2, 0, 1):
        connections.open(connection(f"{user}-{number}", user, at=NOW + number))
    with pytest.raises(LimitReached) as reached:
        connections.open(connection(f"{user}-3", user, None, user))
    ids = [one.connection_id for one in reached.value.recipients]
    assert ids == [f"{user}-0", f"{user}-1", f"{user}-2"]
    assert online(users, user) == 3
    assert stored(dynamodb, f"{user}-3") is None
    assert members(dynamodb, user) == []
    connections.remove(recipient(f"{user}-0", user), NOW)
    connections.open(connection(f"{user}-3", user))


def test_the_limit_is_exact_under_a_race(ministack: Any, user: str) -> None:
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
        connections.open(connection(f"{user}-3", user, at=NOW + 1000))
    assert limited.value.retry_after == pytest.approx(19)
    connections.open(connection(f"{user}-4", user, at=NOW + 20_000))
    assert online(users, user) == 4


def test_a_full_user_is_probed_once_a_minute(connections: Connections, user: str) -> None:
    key = user_key(None, user)
    assert connections.may_probe(key, NOW)
    assert not connections.may_probe(key, NOW + 59_999)
    assert connections.may_probe(key, NOW + 60_001)


# --- Active and stale


def test_stale_and_active_again(dynamodb: Any, connections: Connections, user: str) -> None:
    def state() -> tuple[str, str]:
        item = stored(dynamodb, user)
        return item["status"]["S"], item["timestamp"]["N"]

    opened = connection(user, user)
    connections.open(opened)
    connections.mark_stale(user)
    assert state() == ("stale", str(NOW))
    connections.record_activity(user, opened.principal, NOW + 1, 0)
    assert state() == ("active", str(NOW + 1))
    assert user_item(dynamodb, user)["lastSeen"]["N"] == str(NOW + 1)
    connections.mark_stale(user)
    connections.revive(user, NOW + 2)
    assert state() == ("active", str(NOW + 2))


def test_silence_is_stale_without_a_write() -> None:
    opened = connection("c", "alice")
    assert opened.status_at(NOW + 600_000, 600) is Status.ACTIVE
    assert opened.status_at(NOW + 600_001, 600) is Status.STALE
    assert replace(opened, status=Status.STALE).status_at(NOW, 600) is Status.STALE


def test_what_is_gone_is_not_made_a_ghost(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    connections.mark_stale(user)
    connections.revive(user, NOW)
    gone = connection(user, user)
    for change in (
        lambda: connections.record_activity(user, gone.principal, NOW, 1),
        lambda: connections.join(gone, user, NOW + 1),
        lambda: connections.leave(gone, user, NOW + 1),
        lambda: connections.refresh(gone, gone.principal, NOW + 1),
    ):
        with pytest.raises(ConnectionGone):
            change()
    assert stored(dynamodb, user) is None
    assert user_item(dynamodb, user) is None
    assert members(dynamodb, user) == []


def test_an_item_is_what_was_opened(connections: Connections, user: str) -> None:
    opened = connection(user, user, "acme", "a", "b*")
    connections.open(opened)
    assert connections.find(user) == opened
    assert connections.find("unknown") is None


# --- Groups


def test_groups_are_joined_and_left_and_end_with_the_connection(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user, "t", f"{user}-a")
    connections.open(opened)
    for _ in range(2):
        connections.join(opened, f"{user}-b", NOW + 1)
    connections.leave(opened, f"{user}-never", NOW + 1)
    assert members(dynamodb, f"{user}-a", "t") == members(dynamodb, f"{user}-b", "t") == [user]
    assert members(dynamodb, f"{user}-a") == []
    for _ in range(2):
        connections.leave(opened, f"{user}-a", NOW + 1)
    assert members(dynamodb, f"{user}-a", "t") == []
    connections.remove(recipient(user, user, "t"), NOW)
    assert members(dynamodb, f"{user}-b", "t") == []


def test_one_group_too_many_is_refused(connections: Connections, user: str) -> None:
    groups = [f"{user}-{number}" for number in range(MAX_GROUPS)]
    opened = connection(user, user, None, *groups)
    connections.open(opened)
    connections.join(opened, groups[7], NOW + 1)
    with pytest.raises(BadRequest, match="50 groups"):
        connections.join(opened, "another", NOW + 1)
    assert connections.remove(opened.recipient, NOW, groups)


# --- Refresh


def refreshed(opened: Connection, **changes: Any) -> Principal:
    return replace(opened.principal, expires_at=LATER + 3600, **changes)


def test_refresh_gives_a_new_principal_and_leaves_what_it_does_not_allow(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user, None, f"{user}-a", f"{user}-b")
    connections.open(opened)
    connections.join(opened, f"{user}-c", NOW + 1)
    renewed = refreshed(opened, groups=(f"{user}-a", f"{user}-c*"))
    connections.refresh(opened, renewed, NOW + 1)
    found = connections.find(user)
    assert found is not None
    assert found.principal == renewed
    assert found.groups == {f"{user}-a", f"{user}-c"}
    assert members(dynamodb, f"{user}-b") == []
    assert stored(dynamodb, user)["tokenUntil"] == {"N": str(LATER + 3600)}
    assert user_item(dynamodb, user)[f"@{user}"] == stored(dynamodb, user)["reach"]
    connections.refresh(found, refreshed(opened, groups=()), NOW + 1)
    assert "groups" not in stored(dynamodb, user)
    assert members(dynamodb, f"{user}-a") == []


def test_after_a_refresh_its_principal_is_the_one_in_one_call(
    client: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user)
    connections.open(opened)
    renewed = refreshed(opened, scopes=frozenset({Scope.MESSAGES_SEND}))
    connections.refresh(opened, renewed, NOW + 1)
    client.calls.clear()
    assert connections.record_activity(user, opened.principal, NOW, 0) == renewed
    assert client.calls == ["transact_write_items"]
    elsewhere = connections_of(client)
    assert elsewhere.record_activity(user, opened.principal, NOW, 0) == renewed
    client.calls.clear()
    assert elsewhere.record_activity(user, opened.principal, NOW, 0) == renewed
    assert client.calls == ["transact_write_items"]


# --- What the emulator never does


class Conflicting(Counted):
    """Loses against another transaction so many times."""

    def __init__(self, client: Any, losses: int) -> None:
        super().__init__(client)
        self.losses = losses

    def transact_write_items(self, **parameters: Any) -> Any:
        self.calls.append("transact_write_items")
        if len(self.calls) <= self.losses:
            reasons = [{"Code": "None"}, {"Code": "TransactionConflict"}]
            response: Any = {
                "Error": {"Code": "TransactionCanceledException", "Message": ""},
                "CancellationReasons": reasons,
            }
            raise ClientError(response, "TransactWriteItems")
        return self._client.transact_write_items(**parameters)


def test_a_conflict_is_tried_again(dynamodb: Any, users: Users, user: str) -> None:
    """DynamoDB cancels one of two transactions that meet; the emulator never does."""

    client: Any = Conflicting(dynamodb, 2)
    connections_of(client).open(connection(user, user))
    assert len(client.calls) == 3
    assert online(users, user) == 1


def test_too_many_conflicts_are_the_users_own_doing(
    dynamodb: Any, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chalicelib.store.dynamodb.CONFLICT_BACKOFF_SECONDS", 0)
    client: Any = Conflicting(dynamodb, 1000)
    with pytest.raises(Contended) as contended:
        connections_of(client).open(connection(user, user))
    assert contended.value.retry_after
    assert len(client.calls) == CONFLICT_TRIES


# --- What only shows where two sides know different things


def test_each_is_charged_for_what_they_ask_wherever_it_is_counted(dynamodb: Any, user: str) -> None:
    """Two environments, neither of which has seen the other's."""
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


def test_a_frames_messages_count_for_the_quota(dynamodb: Any, user: str) -> None:
    """Those that a frame sends, as a POST's do."""
    limited = connections_of(dynamodb, quota=2)
    opened = connection(user, user)
    limited.open(opened)
    for messages in (2, 0):
        limited.record_activity(user, opened.principal, NOW, messages)
    with pytest.raises(QuotaExceeded):
        limited.record_activity(user, opened.principal, NOW, 1)


def test_what_has_ended_is_told_to_connect_again(connections: Connections, user: str) -> None:
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
    assert gone.value.detail == "the client has left already"


def test_the_limit_and_who_holds_it_are_told(connections: Connections, user: str) -> None:
    for number in range(3):
        connections.open(connection(f"{user}-{number}", user, "acme", at=NOW + number))
    with pytest.raises(LimitReached) as reached:
        connections.open(connection(f"{user}-4", user, "acme"))
    assert reached.value.detail == "the user has 3 connections, which is the limit"
    assert [(one.user_id, one.tenant) for one in reached.value.recipients] == [(user, "acme")] * 3


def test_an_end_is_counted_with_how_long_it_lasted(
    dynamodb: Any, user: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics("test")
    connections = connections_of(dynamodb, metrics=metrics)
    opened = connection(user, user)
    connections.open(opened)
    assert connections.remove(opened.recipient, NOW + 1500)
    assert not connections.remove(opened.recipient, NOW + 2500)
    metrics.flush()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["ConnectionsClosed"] for line in printed if "ConnectionsClosed" in line] == [[1.0]]
    assert [line["ConnectionDuration"] for line in printed if "ConnectionDuration" in line] == [
        [1500.0]
    ]


def test_since_when_it_is_in_a_group(dynamodb: Any, connections: Connections, user: str) -> None:
    """From its first joining on, until it leaves; what it is in since it opened needs no note."""
    opened = connection(user, user, None, "own")
    connections.open(opened)
    connections.join(opened, "team", NOW + 1)
    joined = connections.find(user)
    assert joined is not None
    connections.join(joined, "team", NOW + 2)
    connections.join(joined, "own", NOW + 3)
    item = stored(dynamodb, user)
    assert {name: item[name] for name in item if name.startswith("+")} == {
        "+team": {"N": str(NOW + 1)}
    }
    connections.leave(joined, "team", NOW + 4)
    item = stored(dynamodb, user)
    assert item["groups"] == {"SS": ["own"]}
    assert not any(name.startswith("+") for name in item)
    assert members(dynamodb, "team") == []


def notes(dynamodb: Any, user: str) -> list[Any]:
    """The groups of each note of what a user's connections were in, in the order of their kinds."""
    answer = dynamodb.query(
        TableName=TABLES.history,
        KeyConditionExpression="#stream = :stream",
        ExpressionAttributeNames={"#stream": "stream"},
        ExpressionAttributeValues={":stream": {"S": f"was/{user_key(None, user)}"}},
    )
    return [item["groups"] for item in answer["Items"]]


def test_what_it_was_in_is_noted_when_it_leaves_it(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    opened = connection(user, user, None, "one", "two", "three")
    connections.open(opened)
    connections.leave(opened, "one", NOW + 1)
    one, two = {"SS": ["one"]}, {"SS": ["two"]}
    assert notes(dynamodb, user) == [one]
    left = connections.find(user)
    assert left is not None
    connections.refresh(left, replace(left.principal, groups=("three",)), NOW + 2)
    assert notes(dynamodb, user) == [one, two]
    connections.remove(opened.recipient, GROWN_UP, ["three"])
    three = {"M": {"three": {"N": str(NOW)}}}
    assert notes(dynamodb, user) == [three, one, two]


def test_a_wrong_guess_of_the_groups_is_no_end(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    """The groups are guessed rightly, but not since when it is in them."""
    opened = connection(user, user)
    connections.open(opened)
    connections.join(opened, "team", NOW + 5)
    assert connections.remove(opened.recipient, GROWN_UP, ["team"])
    assert notes(dynamodb, user) == [{"M": {"team": {"N": str(NOW + 5)}}}]


class Restless:
    """A DynamoDB client beside which a connection joins a new group before each transaction."""

    def __init__(self, client: Any, opened: Connection) -> None:
        self._client = client
        self._beside = connections_of(client)
        self._opened = opened
        self._numbers = count()

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._client, operation)

    def transact_write_items(self, **parameters: Any) -> Any:
        self._beside.join(self._opened, f"group-{next(self._numbers)}", NOW)
        return self._client.transact_write_items(**parameters)


def test_groups_that_never_rest_are_given_up(dynamodb: Any, user: str) -> None:
    opened = connection(user, user)
    connections_of(dynamodb).open(opened)
    restless = connections_of(Restless(dynamodb, opened))
    with pytest.raises(Unavailable) as unavailable:
        restless.remove(opened.recipient, GROWN_UP)
    assert unavailable.value.detail == "the connection's groups change faster than they can be left"
    with pytest.raises(Unavailable) as unavailable:
        restless.refresh(opened, opened.principal, NOW)
    assert unavailable.value.detail == "the connection's groups change faster than they can be read"


def test_only_so_many_refreshed_are_remembered_and_the_last_ones(
    dynamodb: Any, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_module, "REFRESHED_REMEMBERED", 2)
    client: Any = Counted(dynamodb)
    connections = connections_of(client)
    opened = [connection(f"{user}-{number}", user) for number in range(3)]
    for one in opened:
        connections.open(one)
        connections.refresh(one, refreshed(one), NOW)
    client.calls.clear()
    calls = []
    for one in reversed(opened):
        connections.record_activity(one.connection_id, one.principal, NOW, 0)
        calls.append(len(client.calls))
    assert calls == [1, 2, 4]  # who was forgotten is found out by a second call


def test_it_is_found_as_it_is_at_this_moment(connections: Connections, user: str) -> None:
    class Asked:
        def get_item(self, **parameters: Any) -> Any:
            assert parameters["ConsistentRead"] is True
            return {}

    assert connections_of(Asked()).find(user) is None


def test_how_long_a_user_is_remembered(dynamodb: Any, connections: Connections, user: str) -> None:
    connections.open(connection(user, user))
    expires = int(user_item(dynamodb, user)["expiresAt"]["N"])
    assert expires == NOW // 1000 + USER_SECONDS


def test_a_refresh_says_of_its_user_what_was_said_before(
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
    """A DynamoDB client beside which a connection's token is renewed before each transaction."""

    def transact_write_items(self, **parameters: Any) -> Any:
        principal = replace(self._opened.principal, expires_at=LATER + 1 + next(self._numbers))
        self._beside.refresh(self._opened, principal, NOW)
        return self._client.transact_write_items(**parameters)


def test_a_token_that_never_rests_is_given_up(dynamodb: Any, user: str) -> None:
    opened = connection(user, user)
    connections_of(dynamodb).open(opened)
    with pytest.raises(Unavailable) as unavailable:
        connections_of(Renewing(dynamodb, opened)).record_activity(user, opened.principal, NOW, 0)
    assert unavailable.value.detail == "the connection's token changes too fast"
    assert unavailable.value.retry_after == 1.0
