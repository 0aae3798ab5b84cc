"""The proxy with AWS's limits, as an SDK sees it."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.clients import Client, configured, served
from tests.support.limits.buckets import Bucket, Limits
from tests.support.limits.costs import read_units, size_of, write_units
from tests.support.limits.proxy import Control, limiting_proxy

HISTORY, USERS, CONNECTIONS = "herald-history", "herald-users", "herald-connections"
FROZEN = Limits(
    table_writes=1e-6,
    table_reads=1e-6,
    partition_writes=1e-6,
    partition_reads=1e-6,
    burst_seconds=10e6,  # ten units, and none comes back
    connections_rate=1e-6,
    connections_burst=2,
)
WIDE = FROZEN._replace(table_writes=1, table_reads=1)
"""Only partitions run out of units."""

pytestmark = pytest.mark.timeout(180)  # two processes start


@pytest.fixture(scope="module")
def gateway() -> Iterator[Client]:
    with (
        served(configured(GATEWAY_SCHEDULE_SECONDS="86400")) as running,
        closing(Client(running)) as client,
    ):
        yield client


@pytest.fixture(params=[FROZEN])
def proxy(gateway: Client, request: pytest.FixtureRequest) -> Iterator[Control]:
    with limiting_proxy(request.param, ["north", "south"]) as control:
        control.lead_to(gateway.running)
        yield control


@pytest.fixture
def dynamodb(gateway: Client, proxy: Control) -> Iterator[Any]:
    client = boto3.client(
        "dynamodb",
        endpoint_url=proxy.dynamodb,
        region_name="us-east-1",
        aws_access_key_id=gateway.running.aws["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=gateway.running.aws["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}),
    )
    with closing(client):
        yield client


only_partitions = pytest.mark.parametrize("proxy", [WIDE], indirect=True)


def message(stream: str, position: int, size: int = 10) -> Any:
    return {
        "stream": {"S": stream},
        "position": {"S": str(position)},
        "packed": {"S": "x" * size},
    }


def put_messages(dynamodb: Any, *items: Any) -> Any:
    requests = {HISTORY: [{"PutRequest": {"Item": item}} for item in items]}
    return dynamodb.batch_write_item(RequestItems=requests)["UnprocessedItems"]


def users(*names: str) -> Any:
    keys = [{"user": {"S": name}} for name in names]
    return {USERS: {"Keys": keys, "ConsistentRead": True}}


# --- Units


def test_a_bucket_can_be_overdrawn_and_refills() -> None:
    now = [0.0]
    bucket = Bucket(10, 20, lambda: now[0])
    bucket.spend(25)
    assert bucket.empty
    now[0] = 0.55
    assert bucket.empty
    now[0] = 0.65
    assert not bucket.empty


def test_an_item_is_as_large_as_its_names_and_values() -> None:
    item = {
        "ä": {"S": "ö"},
        "n": {"N": "1234"},
        "b": {"B": "AAAA"},
        "m": {"M": {"x": {"NULL": True}}},
    }
    assert size_of(item) == (2 + 2) + (1 + 3) + (1 + 3) + (1 + 3 + 1 + 2)


def test_writes_are_counted_by_the_kilobyte_and_reads_by_four() -> None:
    assert [write_units(size) for size in (0, 1024, 1025)] == [1, 1, 2]
    assert read_units([4096, 4096, 1], consistent=True) == 3
    assert read_units([], consistent=False) == 0.5


# --- DynamoDB


def test_the_part_of_a_batch_beyond_the_limit_is_unprocessed(dynamodb: Any, proxy: Control) -> None:
    items = [message(f"user/north/{number}", 1) for number in range(12)]
    left = put_messages(dynamodb, *items)
    assert left == {HISTORY: [{"PutRequest": {"Item": item}} for item in items[10:]]}
    assert proxy.counts().units == {HISTORY: {"writes": 10}}
    assert proxy.counts().throttled == {
        "north": {f"{HISTORY} TableWriteMaxOnDemandThroughputExceeded": 2}
    }


@only_partitions
def test_a_hot_partition_throttles_only_what_is_written_to_it(dynamodb: Any) -> None:
    left = put_messages(
        dynamodb,
        message("user/north/hot", 1, 10_000),
        message("user/north/hot", 2),
        message("user/south/cold", 1),
    )
    assert [entry["PutRequest"]["Item"]["position"]["S"] for entry in left[HISTORY]] == ["2"]


def test_a_batch_of_which_nothing_can_be_done_is_refused(dynamodb: Any) -> None:
    put_messages(dynamodb, message("user/north/a", 1, 11_000))
    with pytest.raises(ClientError) as refused:
        put_messages(dynamodb, message("user/north/b", 1))
    assert refused.value.response["Error"]["Code"] == "ThrottlingException"


def test_the_keys_of_a_batch_beyond_the_limit_are_unprocessed(dynamodb: Any) -> None:
    asked = users(*(f"north/{number}" for number in range(12)))
    answer = dynamodb.batch_get_item(RequestItems=asked)
    assert answer["UnprocessedKeys"] == users("north/10", "north/11")


def test_a_single_call_is_refused_as_on_demand_tables_do(dynamodb: Any, proxy: Control) -> None:
    dynamodb.put_item(TableName=HISTORY, Item=message("user/south/a", 1, 11_000))
    with pytest.raises(ClientError) as refused:
        dynamodb.put_item(TableName=HISTORY, Item=message("user/south/a", 2))
    answer: Any = refused.value.response
    assert answer["Error"]["Code"] == "ThrottlingException"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 400
    [reason] = answer["throttlingReasons"]
    assert reason["reason"] == "TableWriteKeyRangeThroughputExceeded"
    assert reason["resource"].endswith(f"table/{HISTORY}")
    assert proxy.counts().calls == {"south": {"PutItem": 2}}


def test_a_transaction_costs_double_and_is_cancelled_when_throttled(
    dynamodb: Any, proxy: Control
) -> None:
    def transact(user: str) -> Any:
        count = {
            "TableName": USERS,
            "Key": {"user": {"S": user}},
            "UpdateExpression": "ADD n :one",
            "ExpressionAttributeValues": {":one": {"N": "1"}},
        }
        put = {"TableName": HISTORY, "Item": message(user, 1)}
        return dynamodb.transact_write_items(TransactItems=[{"Update": count}, {"Put": put}])

    for number in range(5):
        transact(f"north/{number}")
    assert proxy.counts().units == {USERS: {"writes": 10}, HISTORY: {"writes": 10}}
    dynamodb.put_item(
        TableName="herald-groups",
        Item={**message("", 1), "group": {"S": "g"}, "connectionId": {"S": "c"}},
    )
    with pytest.raises(ClientError) as cancelled:
        transact("north/6")
    answer: Any = cancelled.value.response
    assert answer["Error"]["Code"] == "TransactionCanceledException"
    assert [reason["Code"] for reason in answer["CancellationReasons"]] == ["ThrottlingError"] * 2


def test_a_failed_condition_costs_what_the_write_would(dynamodb: Any, proxy: Control) -> None:
    put = {"TableName": HISTORY, "Item": message("user/north/a", 1, 2000)}
    dynamodb.put_item(**put)
    with pytest.raises(ClientError):
        dynamodb.put_item(**put, ConditionExpression="attribute_not_exists(stream)")
    assert proxy.counts().units == {HISTORY: {"writes": 4}}


def test_an_index_entry_is_written_and_deleted_with_its_item(dynamodb: Any, proxy: Control) -> None:
    key = {"connectionId": {"S": "c"}}
    dynamodb.put_item(TableName=CONNECTIONS, Item={**key, "userId": {"S": "alice"}})
    dynamodb.delete_item(TableName=CONNECTIONS, Key=key)
    units = proxy.counts().units
    assert units[CONNECTIONS] == units[f"{CONNECTIONS}.userId"] == {"writes": 2}


def test_a_query_costs_the_sum_of_what_it_reads(dynamodb: Any, proxy: Control) -> None:
    for position in range(3):
        dynamodb.put_item(TableName=HISTORY, Item=message("user/north/a", position, 2000))
    for consistent in (True, False):
        dynamodb.query(
            TableName=HISTORY,
            KeyConditionExpression="#stream = :stream",
            ExpressionAttributeNames={"#stream": "stream"},
            ExpressionAttributeValues={":stream": {"S": "user/north/a"}},
            ConsistentRead=consistent,
        )
    assert proxy.counts().units[HISTORY]["reads"] == 2 + 1


def test_counting_begins_anew_with_full_buckets(dynamodb: Any, proxy: Control) -> None:
    dynamodb.put_item(TableName=HISTORY, Item=message("user/north/a", 1, 20_000))
    proxy.begin()
    assert proxy.counts().units == {}
    dynamodb.put_item(TableName=HISTORY, Item=message("user/north/b", 1))


# --- `@connections`


def test_requests_beyond_the_quota_get_429(proxy: Control) -> None:
    url = f"{proxy.connections}/ws/@connections/L0SM9cOFvHcCIhw%3D"
    answers = [httpx.post(url, content=b"hello") for _ in range(3)]
    assert [answer.status_code for answer in answers[2:]] == [429]
    assert 429 not in [answer.status_code for answer in answers[:2]]
    assert answers[2].headers["x-amzn-ErrorType"] == "LimitExceededException"
    assert json.loads(answers[2].content) == {"message": "Limit Exceeded"}
    assert proxy.counts().sent == {"L0SM9cOFvHcCIhw=": 2}
    assert proxy.counts().refused == {"L0SM9cOFvHcCIhw=": 1}
