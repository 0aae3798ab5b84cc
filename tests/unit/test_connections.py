"""The two tables, in a real DynamoDB emulator."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chalicelib.connections import Connections
from chalicelib.errors import TooManyConnections
from chalicelib.users import Users
from tests.tables import NOW, TABLES, Counted, connection


@pytest.fixture
def client(dynamodb: Any) -> Counted:
    return Counted(dynamodb)


@pytest.fixture
def connections(client: Any) -> Connections:
    return Connections(client, *TABLES, limit=3)


@pytest.fixture
def users(dynamodb: Any) -> Users:
    return Users(dynamodb, TABLES[1])


def test_opening_and_closing_are_one_call_each(
    client: Counted, connections: Connections, users: Users, user: str
) -> None:
    connections.open(connection("c1", user))
    assert users.presence(None, user).connections == 1
    connections.close("c1", None, user, NOW + 5)
    presence = users.presence(None, user)
    assert (presence.connections, presence.last_seen) == (0, NOW + 5)
    assert client.calls == ["transact_write_items"] * 2


def test_what_comes_twice_changes_nothing(
    connections: Connections, users: Users, user: str
) -> None:
    for _ in range(2):
        connections.open(connection(f"{user}-1", user))
    connections.open(connection(f"{user}-2", user))
    connections.open(connection(f"{user}-3", user))
    connections.open(connection(f"{user}-3", user))  # at the limit, but it is counted already
    assert users.presence(None, user).connections == 3
    for _ in range(2):
        connections.close(f"{user}-1", None, user, NOW)
    assert users.presence(None, user).connections == 2


def test_over_the_limit_neither_table_changes(
    dynamodb: Any, connections: Connections, users: Users, user: str
) -> None:
    for number in range(3):
        connections.open(connection(f"{user}-{number}", user))
    with pytest.raises(TooManyConnections):
        connections.open(connection(f"{user}-3", user))
    assert users.presence(None, user).connections == 3
    assert connections.principal(f"{user}-3") is None
    connections.close(f"{user}-0", None, user, NOW)
    connections.open(connection(f"{user}-3", user))


def test_the_limit_is_exact_under_a_race(dynamodb: Any, users: Users, user: str) -> None:
    connections = Connections(dynamodb, *TABLES, limit=10)

    def attempt(number: int) -> bool:
        try:
            connections.open(connection(f"{user}-{number}", user))
        except TooManyConnections:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        accepted = sum(threads.map(attempt, range(100)))
    assert accepted == 10 == users.presence(None, user).connections


def test_the_principal_is_kept(connections: Connections, user: str) -> None:
    opened = connection(f"{user}-1", user, "acme")
    connections.open(opened)
    assert connections.principal(f"{user}-1") == opened.principal
    assert connections.principal("unknown") is None


def test_touching_what_is_gone_makes_no_ghost(
    dynamodb: Any, connections: Connections, user: str
) -> None:
    connections.touch(user, NOW)
    connections.mark_stale(user)
    assert "Item" not in dynamodb.get_item(TableName=TABLES[0], Key={"connectionId": {"S": user}})


def test_stale_and_active_again(dynamodb: Any, connections: Connections, user: str) -> None:
    def state() -> tuple[str, str]:
        key = {"connectionId": {"S": user}}
        item = dynamodb.get_item(TableName=TABLES[0], Key=key, ConsistentRead=True)["Item"]
        return item["status"]["S"], item["timestamp"]["N"]

    connections.open(connection(user, user))
    connections.mark_stale(user)
    assert state() == ("stale", str(NOW))
    connections.touch(user, NOW + 1)
    assert state() == ("active", str(NOW + 1))


def test_a_conflict_is_tried_again(dynamodb: Any, users: Users, user: str) -> None:
    """DynamoDB cancels one of two transactions that meet; the emulator never does."""
    from botocore.exceptions import ClientError

    class Conflicting(Counted):
        def transact_write_items(self, **parameters: Any) -> Any:
            self.calls.append("transact_write_items")
            if len(self.calls) < 3:
                reasons = [{"Code": "None"}, {"Code": "TransactionConflict"}]
                response: Any = {
                    "Error": {"Code": "TransactionCanceledException", "Message": ""},
                    "CancellationReasons": reasons,
                }
                raise ClientError(response, "TransactWriteItems")
            return dynamodb.transact_write_items(**parameters)

    client: Any = Conflicting(dynamodb)
    Connections(client, *TABLES, limit=3).open(connection(user, user))
    assert len(client.calls) == 3
    assert users.presence(None, user).connections == 1
