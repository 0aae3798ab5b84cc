"""Differences between the two emulators of DynamoDB, and which of them is right.

docs/decisions/0016-moto.md cites AWS's documentation. If a test fails after an update of either
emulator, that emulator has changed, and that page has to change with it.
"""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.tables import TABLES

NUMBER = {"N": "1"}
Ask = Callable[[Any, str], str]


def put(client: Any, user: str, **attributes: Any) -> dict[str, Any]:
    """Put an item into the users table, and return its table and key."""
    key = {"user": {"S": user}}
    client.put_item(TableName=TABLES.users, Item={**key, **attributes})
    return {"TableName": TABLES.users, "Key": key}


def one_token_twice(client: Any, user: str) -> str:
    """https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html"""
    item = put(client, user)
    update = {"UpdateExpression": "ADD n :one", "ExpressionAttributeValues": {":one": NUMBER}}
    for _ in range(2):
        client.transact_write_items(
            TransactItems=[{"Update": {**item, **update}}], ClientRequestToken=user[-36:]
        )
    return str(client.get_item(**item)["Item"]["n"]["N"])


def a_value_that_a_transaction_does_not_use(client: Any, user: str) -> str:
    values = {":n": NUMBER, ":unused": NUMBER}
    update = {"UpdateExpression": "SET n = :n", "ExpressionAttributeValues": values}
    client.transact_write_items(TransactItems=[{"Update": {**put(client, user), **update}}])
    return "accepted"


def a_set_that_has_a_value_twice(client: Any, user: str) -> str:
    """https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.NamingRulesDataTypes.html"""
    put(client, user, values={"SS": ["a", "a"]})
    return "accepted"


def a_number_with_leading_zeros(client: Any, user: str) -> str:
    """https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.NamingRulesDataTypes.html"""
    item = put(client, user, n={"N": "007"})
    return str(client.get_item(**item)["Item"]["n"]["N"])


def a_batch_of_26(client: Any, user: str) -> str:
    """https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchWriteItem.html"""
    items = [{"user": {"S": f"{user}-{number}"}} for number in range(26)]
    requests = [{"PutRequest": {"Item": item}} for item in items]
    client.batch_write_item(RequestItems={TABLES.users: requests})
    return "accepted"


def a_page_that_ends_at_its_limit(client: Any, user: str) -> str:
    """https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_Query.html"""
    item = {"group": {"S": user}, "connectionId": {"S": "c"}}
    client.put_item(TableName=TABLES.groups, Item=item)
    page = client.query(
        TableName=TABLES.groups,
        Limit=1,
        KeyConditionExpression="#group = :group",
        ExpressionAttributeNames={"#group": "group"},
        ExpressionAttributeValues={":group": item["group"]},
    )
    return "another page" if "LastEvaluatedKey" in page else "the end"


def an_attribute_that_is_set_and_removed(client: Any, user: str) -> str:
    client.update_item(
        **put(client, user),
        UpdateExpression="SET n = :n REMOVE n",
        ExpressionAttributeValues={":n": NUMBER},
    )
    return "accepted"


RIGHT: dict[str, dict[Ask, tuple[str, str]]] = {
    "ministack": {
        one_token_twice: ("1", "2"),
        a_value_that_a_transaction_does_not_use: ("ValidationException", "accepted"),
        a_set_that_has_a_value_twice: ("ValidationException", "accepted"),
        a_number_with_leading_zeros: ("7", "007"),
        a_batch_of_26: ("ValidationException", "accepted"),
        a_page_that_ends_at_its_limit: ("another page", "the end"),
    },
    "moto": {
        an_attribute_that_is_set_and_removed: ("ValidationException", "accepted"),
    },
}
"""For each emulator, the cases in which it is right: its answer, and the answer of the other."""


@pytest.mark.parametrize(
    ("right", "ask"),
    [(right, ask) for right, cases in RIGHT.items() for ask in cases],
    ids=lambda one: one if isinstance(one, str) else one.__name__,
)
def test_the_emulators_differ_in_the_known_ways(
    right: str, ask: Ask, moto: Any, ministack: Any, user: str
) -> None:
    answers = {}
    for name, client in (("moto", moto), ("ministack", ministack)):
        try:
            answers[name] = ask(client, user)
        except ClientError as error:
            answers[name] = error.response["Error"]["Code"]
    rightly, wrongly = RIGHT[right][ask]
    [wrong] = {"moto", "ministack"} - {right}
    assert answers == {right: rightly, wrong: wrongly}
