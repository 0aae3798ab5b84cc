"""What functions ask of AWS: a line of JSON for each call, for who writes their policies.

The names are IAM's. A transaction needs the right to each of its actions:
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis-iam.html
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import botocore

IN_TRANSACTION = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}
OTHER_NAMES = {"SendMessageBatch": "SendMessage", "PublishBatch": "Publish"}


def record_calls(file: Path, function: Callable[[], str]) -> None:
    """Append each call to a file, with the function that made it."""

    def note(**call: Any) -> None:
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
        lambda session: session.register("provide-client-params.*.*", note)
    )


def _actions(operation: str, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The actions of a call, each with the name of what it is done to."""
    if operation == "TransactWriteItems":
        for entry in params["TransactItems"]:
            for kind, action in entry.items():
                yield IN_TRANSACTION[kind], action["TableName"]
    elif operation in ("BatchGetItem", "BatchWriteItem"):
        for table in params["RequestItems"]:
            yield operation, table
    else:
        target = (
            params.get("TableName")
            or params.get("QueueUrl")
            or params.get("TopicArn")
            or params.get("SecretId")
            or ""
        )
        name = target.rpartition("/")[2].rpartition(":")[2]
        yield OTHER_NAMES.get(operation, operation), name
