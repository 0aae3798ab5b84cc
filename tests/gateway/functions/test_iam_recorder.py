"""The IAM actions that a call needs; `test_policies.py` compares them with the policies."""

from typing import Any

import pytest

from gateway.functions.iam_recorder import _actions


@pytest.mark.parametrize(
    ("operation", "params", "actions"),
    [
        ("Query", {"TableName": "t"}, [("Query", "t")]),
        (
            "TransactWriteItems",
            {
                "TransactItems": [
                    {"Put": {"TableName": "t"}},
                    {"ConditionCheck": {"TableName": "u"}},
                ]
            },
            [("PutItem", "t"), ("ConditionCheckItem", "u")],
        ),
        ("BatchGetItem", {"RequestItems": {"t": {}, "u": {}}}, [("BatchGetItem", t) for t in "tu"]),
        ("SendMessageBatch", {"QueueUrl": "http://127.0.0.1:1/0/q"}, [("SendMessage", "q")]),
        ("Publish", {"TopicArn": "arn:aws:sns:us-east-1:0:topic"}, [("Publish", "topic")]),
        ("PostToConnection", {"ConnectionId": "a"}, [("PostToConnection", "")]),
    ],
)
def test_a_call_needs_the_actions_that_iam_knows_it_by(
    operation: str, params: Any, actions: list[tuple[str, str]]
) -> None:
    assert list(_actions(operation, params)) == actions
