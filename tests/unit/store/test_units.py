"""The meter counts units as AWS's documents do, on each emulator."""

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.limits.costs import Version, write_costs
from tests.support.limits.schema import Index, Table, table_of
from tests.support.tables import TABLES
from tests.support.units import Meter

CONNECTIONS, USERS, HISTORY = TABLES.connections, TABLES.users, TABLES.history
USER_INDEX = f"{CONNECTIONS}.userId"
KEYS_ONLY = Index("table.owner", ("owner",), frozenset({"owner", "id"}))
TABLE = Table("table", ("id",), (KEYS_ONLY,))
MISSING = "attribute_not_exists(#key)"


@pytest.fixture
def meter(dynamodb: Any) -> Meter:
    return Meter(dynamodb)


@pytest.fixture
def stored(meter: Meter, user: str) -> Iterator[Any]:
    """Store items of some KB for the user, and count from zero. Returns their keys."""
    keys: list[Any] = []

    def store(*kilobytes: float) -> list[Any]:
        for size in kilobytes:
            key = {"stream": {"S": user}, "position": {"S": str(len(keys))}}
            packed = "x" * (int(size * 1024) - len(user) - len("streamposition0packed"))
            meter.put_item(TableName=HISTORY, Item={**key, "packed": {"S": packed}})
            keys.append(key)
        meter.begin()
        return keys

    yield store
    for key in keys:
        meter.delete_item(TableName=HISTORY, Key=key)


def item(user: str, size: int = 0) -> Any:
    return {"user": {"S": user}, "padding": {"S": "x" * size}}


def shrink(user: str) -> Any:
    """Return the parameters of an update that makes an item small."""
    return {
        "TableName": USERS,
        "Key": {"user": {"S": user}},
        "UpdateExpression": "SET padding = :little",
        "ExpressionAttributeValues": {":little": {"S": ""}},
    }


def if_missing(key: str) -> Any:
    return {"ConditionExpression": MISSING, "ExpressionAttributeNames": {"#key": key}}


def query(user: str, **parameters: Any) -> Any:
    return {
        "TableName": HISTORY,
        "KeyConditionExpression": "#stream = :stream",
        "ExpressionAttributeValues": {":stream": {"S": user}},
        "ExpressionAttributeNames": {"#stream": "stream"},
        **parameters,
    }


# --- Writes


def test_a_write_costs_a_unit_for_each_kilobyte_begun(meter: Meter, user: str) -> None:
    exactly = 1024 - len(user) - len("userpadding")
    for size, units in ((exactly, 1), (exactly + 1, 2), (2900, 3)):
        meter.begin()
        meter.put_item(TableName=USERS, Item=item(user, size))
        assert meter.writes == {USERS: units}
        meter.delete_item(TableName=USERS, Key={"user": {"S": user}})
        assert meter.writes == {USERS: 2 * units}
    assert meter.calls == ["put_item", "delete_item"]
    assert meter.reads == {}


def test_the_larger_of_the_old_and_the_new_item_counts(meter: Meter, user: str) -> None:
    meter.put_item(TableName=USERS, Item=item(user, 2500))
    meter.begin()
    meter.update_item(**shrink(user))
    assert meter.writes == {USERS: 3}
    meter.update_item(**shrink(user))
    assert meter.writes == {USERS: 4}


def test_a_write_of_nothing_costs_one_unit(meter: Meter, user: str) -> None:
    meter.delete_item(TableName=USERS, Key={"user": {"S": user}})
    assert meter.writes == {USERS: 1}


def test_a_failed_condition_costs_the_size_of_the_item(meter: Meter, user: str) -> None:
    meter.put_item(TableName=USERS, Item=item(user, 2500))
    meter.begin()
    with pytest.raises(ClientError):
        meter.put_item(TableName=USERS, Item=item(user), **if_missing("user"))
    assert meter.writes == {USERS: 3}
    with pytest.raises(ClientError):
        meter.update_item(
            TableName=USERS,
            Key={"user": {"S": f"{user}-of-nobody"}},
            UpdateExpression="SET padding = :little",
            ConditionExpression="attribute_exists(padding)",
            ExpressionAttributeValues={":little": {"S": ""}},
        )
    assert meter.writes == {USERS: 4}


def test_a_call_that_dynamodb_rejects_costs_nothing(meter: Meter, user: str) -> None:
    with pytest.raises(ClientError):
        meter.put_item(TableName=USERS, Item={**item(user), "empty": {"SS": []}})
    assert meter.calls == ["put_item"]
    assert meter.writes == {}


def test_each_item_of_a_batch_counts_for_itself(meter: Meter, user: str) -> None:
    meter.batch_write_item(
        RequestItems={
            USERS: [
                {"PutRequest": {"Item": item(user, 1500)}},
                {"DeleteRequest": {"Key": {"user": {"S": f"{user}-of-nobody"}}}},
            ],
            HISTORY: [
                {"PutRequest": {"Item": {"stream": {"S": user}, "position": {"S": "1"}}}},
            ],
        }
    )
    assert meter.writes == {USERS: 3, HISTORY: 1}


# --- Transactions


def test_a_transaction_costs_double(meter: Meter, user: str) -> None:
    meter.put_item(TableName=USERS, Item=item(user, 1500))
    meter.begin()
    check = {"TableName": HISTORY, "Key": {"stream": {"S": user}, "position": {"S": "-"}}}
    meter.transact_write_items(
        TransactItems=[
            {"Update": shrink(user)},
            {"ConditionCheck": {**check, **if_missing("stream")}},
        ]
    )
    assert meter.writes == {USERS: 4, HISTORY: 2}


def test_a_cancelled_transaction_costs_as_much(meter: Meter, user: str) -> None:
    for name in (user, f"{user}-2"):
        meter.put_item(TableName=USERS, Item=item(name, 1500))
    meter.begin()
    refused = {"TableName": USERS, "Item": item(f"{user}-2"), **if_missing("user")}
    with pytest.raises(ClientError):
        meter.transact_write_items(TransactItems=[{"Update": shrink(user)}, {"Put": refused}])
    assert meter.writes == {USERS: 8}


# --- Indexes


def test_an_index_entry_costs_one_unit_when_it_is_written_or_deleted(
    meter: Meter, user: str
) -> None:
    key = {"connectionId": {"S": user}}
    put = {"TableName": CONNECTIONS, "Item": {**key, "userId": {"S": "alice"}}}
    meter.transact_write_items(TransactItems=[{"Put": put}])
    assert meter.writes == {CONNECTIONS: 2, USER_INDEX: 1}
    meter.begin()
    meter.delete_item(TableName=CONNECTIONS, Key=key)
    assert meter.writes == {CONNECTIONS: 1, USER_INDEX: 1}


def test_an_item_without_the_indexs_key_costs_the_index_nothing(meter: Meter, user: str) -> None:
    key = {"connectionId": {"S": user}}
    meter.put_item(TableName=CONNECTIONS, Item=key)
    meter.delete_item(TableName=CONNECTIONS, Key=key)
    assert meter.writes == {CONNECTIONS: 2}


def index_units(before: Any, after: Any) -> list[float]:
    """Return what a write costs the index of TABLE."""
    versions = [
        None if entry is None else Version(10, {KEYS_ONLY.name: entry}) for entry in (before, after)
    ]
    costs = write_costs(TABLE, "1", versions[0], versions[1])
    return [cost.units for cost in costs if cost.table == KEYS_ONLY.name]


def test_an_index_is_written_only_if_its_entry_changes() -> None:
    alice, bob = ({"owner": {"S": owner}, "id": {"S": "1"}} for owner in ("alice", "bob"))
    wide = {**alice, "padding": {"S": "x" * 2500}}
    assert index_units(alice, alice) == []
    assert index_units(alice, bob) == [1, 1]  # one entry is deleted, and another one is put
    assert index_units(alice, wide) == [3]
    assert index_units(wide, None) == [3]


@pytest.mark.parametrize(
    ("projection", "projected"),
    [
        ({"ProjectionType": "KEYS_ONLY"}, {"owner", "id"}),
        ({"ProjectionType": "INCLUDE", "NonKeyAttributes": ["size"]}, {"owner", "id", "size"}),
        ({"ProjectionType": "ALL"}, {"owner", "id", "size", "padding"}),
    ],
)
def test_an_index_entry_has_what_the_index_projects(projection: Any, projected: set[str]) -> None:
    description = {
        "TableName": "table",
        "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": "owner",
                "KeySchema": [{"AttributeName": "owner", "KeyType": "HASH"}],
                "Projection": projection,
            }
        ],
    }
    [index] = table_of(description).indexes
    item = {name: {"S": "x"} for name in ("id", "owner", "size", "padding")}
    assert set(index.entry(item) or ()) == projected
    assert index.entry({"id": {"S": "x"}}) is None


# --- Reads


def test_a_read_costs_a_unit_for_each_four_kilobytes_begun(meter: Meter, stored: Any) -> None:
    small, large = stored(4, 5)
    for key, units in ((small, 1), (large, 2)):
        meter.begin()
        meter.get_item(TableName=HISTORY, Key=key, ConsistentRead=True)
        assert meter.reads == {HISTORY: units}
        meter.begin()
        meter.get_item(TableName=HISTORY, Key=key, ProjectionExpression="packed")
        assert meter.reads == {HISTORY: units / 2}
    assert meter.writes == {}


def test_reading_an_item_that_does_not_exist_costs_one_unit(meter: Meter, user: str) -> None:
    meter.get_item(TableName=USERS, Key={"user": {"S": user}}, ConsistentRead=True)
    assert meter.reads == {USERS: 1}


def test_a_batch_of_reads_counts_each_item(meter: Meter, stored: Any, user: str) -> None:
    keys = stored(1, 5)
    meter.batch_get_item(
        RequestItems={
            HISTORY: {"Keys": keys, "ConsistentRead": True, "ProjectionExpression": "packed"},
            USERS: {"Keys": [{"user": {"S": user}}]},
        }
    )
    assert meter.reads == {HISTORY: 3, USERS: 0.5}


def test_a_query_costs_the_sum_of_what_it_reads(meter: Meter, stored: Any, user: str) -> None:
    stored(1.5, 1.5, 1.5)
    meter.query(**query(user, ConsistentRead=True))
    assert meter.reads == {HISTORY: 2}
    meter.begin()
    meter.query(**query(user, Limit=2))
    assert meter.reads == {HISTORY: 0.5}
    meter.begin()
    meter.query(**query(f"{user}-of-nobody", ConsistentRead=True))
    assert meter.reads == {HISTORY: 1}


def test_what_a_query_filters_out_or_does_not_return_costs_too(
    meter: Meter, stored: Any, user: str
) -> None:
    stored(4, 4, 4)
    values = {":stream": {"S": user}, ":other": {"S": "-"}}
    filtered = {
        "FilterExpression": "#other = :other",
        "ExpressionAttributeNames": {"#stream": "stream", "#other": "packed"},
        "ExpressionAttributeValues": values,
    }
    for parameters in (filtered, {"ProjectionExpression": "packed"}, {"Select": "COUNT"}):
        meter.begin()
        meter.query(**query(user, ConsistentRead=True, Limit=2, **parameters))
        assert meter.reads == {HISTORY: 2}
        assert meter.calls == ["query"]


def test_a_query_of_an_index_costs_the_index(meter: Meter, user: str) -> None:
    meter.query(
        TableName=CONNECTIONS,
        IndexName="userId",
        KeyConditionExpression="userId = :user",
        ExpressionAttributeValues={":user": {"S": user}},
    )
    assert meter.reads == {USER_INDEX: 0.5}


def test_a_scan_costs_the_sum_of_what_it_reads(moto: Any) -> None:
    meter = Meter(moto)
    for number in range(5):
        meter.put_item(TableName=USERS, Item=item(str(number), 1800))
    meter.begin()
    meter.scan(TableName=USERS, ProjectionExpression="padding")
    assert meter.reads == {USERS: 1.5}
