"""Records each AWS call as a line of JSON, to help write IAM policies.

Actions have IAM's names. A transaction needs the right to each of its actions:
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis-iam.html
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import botocore

TRANSACTION_ACTIONS = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}
BATCH_ACTIONS = {"SendMessageBatch": "SendMessage", "PublishBatch": "Publish"}
"""The actions of operations that IAM knows by another name."""


def record_calls(file: Path, function: Callable[[], str]) -> None:
    """Append each call from now on to a file, with the name of the function that made it."""

    def record(**call: Any) -> None:
        params, model = call["params"], call["model"]
        service = model.service_model.service_name
        with file.open("a") as lines:
            for action, resource in _actions(model.name, params):
                entry = {
                    "function": function(),
                    "action": f"{service}:{action}",
                    "resource": resource,
                }
                lines.write(json.dumps(entry) + "\n")

    botocore.register_initializer(
        lambda session: session.register("provide-client-params.*.*", record)
    )


def _actions(operation: str, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each action of a call with the name of the resource that it needs the right to."""
    if operation == "TransactWriteItems":
        for item in params["TransactItems"]:
            for kind, action in item.items():
                yield TRANSACTION_ACTIONS[kind], action["TableName"]
    elif operation in ("BatchGetItem", "BatchWriteItem"):
        for table in params["RequestItems"]:
            yield operation, table
    else:
        resource = (
            params.get("TableName")
            or params.get("QueueUrl")
            or params.get("TopicArn")
            or params.get("SecretId")
            or ""
        )
        name = resource.rpartition("/")[2].rpartition(":")[2]
        yield BATCH_ACTIONS.get(operation, operation), name
