"""What each function may do, and nothing else: actions by name, on resources by name.

Regions and accounts are open: with global tables a worker calls `@connections` of other regions,
and the same policy serves every account that it is deployed to.
"""

from collections.abc import Sequence
from typing import Any

from infra.stage import Stage

Statement = dict[str, Any]

# DynamoDB's TransactWriteItems needs what its actions would need by themselves:
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis-iam.html
WRITE = ("dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem")
READ = ("dynamodb:GetItem", "dynamodb:BatchGetItem")
CONNECTIONS, USERS, GROUPS, MESSAGES = (
    "ConnectionsTable",
    "UsersTable",
    "GroupsTable",
    "MessagesTable",
)


def policy(stage: Stage, function: str) -> dict[str, Any]:
    """The policy document of a function's role."""

    def on_table(table: str, *actions: str) -> Statement:
        return _allow(actions, f"arn:*:dynamodb:*:*:table/{stage.named(table)}")

    def on_queue(*actions: str) -> Statement:
        return _allow(actions, f"arn:*:sqs:*:*:{stage.named('FanoutQueue')}")

    logs = _allow(
        ("logs:CreateLogStream", "logs:PutLogEvents"),
        f"arn:*:logs:*:*:log-group:{stage.log_group(function)}:*",
    )
    secret = _allow(
        ("secretsmanager:GetSecretValue",), f"arn:*:secretsmanager:*:*:secret:{stage.prefix}*"
    )
    manage = _allow(
        ("execute-api:ManageConnections",), "arn:*:execute-api:*:*:*/api/*/@connections/*"
    )
    notify = _allow(("sns:Publish",), f"arn:*:sns:*:*:{stage.prefix}*")
    # Who comes in, goes, or is found to be gone: all of it is one transaction over three tables.
    keeping = [
        on_table(CONNECTIONS, *READ, *WRITE),
        on_table(USERS, *READ, *WRITE),
        on_table(GROUPS, *WRITE),
        manage,
        notify,
    ]
    sending = [
        on_table(CONNECTIONS, "dynamodb:Scan"),
        on_table(GROUPS, "dynamodb:Query"),
        on_table(MESSAGES, *READ, "dynamodb:PutItem", "dynamodb:UpdateItem"),
        on_queue("sqs:SendMessage"),
    ]
    checking = [on_table(GROUPS, *READ), on_table(MESSAGES, *READ)]
    by_function: dict[str, list[Statement]] = {
        "rest_authorizer": [secret],
        "connect_authorizer": [secret],
        "websocket_connect": [secret, *keeping],
        "websocket_disconnect": keeping[:3],
        "websocket_message": [secret, *keeping, *sending],
        "api_handler": [*keeping, *sending, *checking],
        "sweep": [
            *keeping,
            on_table(CONNECTIONS, "dynamodb:Scan"),
            on_table(USERS, "dynamodb:Scan"),
        ],
        "deliver_queued": [
            *keeping,
            *sending,
            on_queue("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"),
        ],
    }
    return {"Version": "2012-10-17", "Statement": _merged([logs, *by_function[function]])}


def _allow(actions: Sequence[str], resource: str) -> Statement:
    return {"Effect": "Allow", "Action": sorted(set(actions)), "Resource": resource}


def _merged(statements: Sequence[Statement]) -> list[Statement]:
    """One statement for each resource."""
    actions: dict[str, list[str]] = {}
    for statement in statements:
        actions.setdefault(statement["Resource"], []).extend(statement["Action"])
    return [_allow(allowed, resource) for resource, allowed in actions.items()]
