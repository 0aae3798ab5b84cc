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
CONNECTIONS, USERS, GROUPS, MESSAGES, HISTORY = (
    "ConnectionsTable",
    "UsersTable",
    "GroupsTable",
    "MessagesTable",
    "HistoryTable",
)
TRACING = ("xray:PutTelemetryRecords", "xray:PutTraceSegments")
"""These know no resources:
https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsx-ray.html"""


def policy(
    stage: Stage, function: str, *, log_group: str | None = None, traced: bool = False
) -> dict[str, Any]:
    """The policy document of a function's role.

    `log_group` is that of a packaged template by default; `traced` is for X-Ray.
    """

    def on(table: str, *operations: str) -> Statement:
        actions = [f"dynamodb:{operation}" for operation in operations]
        return _allow(actions, f"arn:*:dynamodb:*:*:table/{stage.named(table)}")

    def on_queue(*actions: str) -> Statement:
        return _allow(actions, f"arn:*:sqs:*:*:{stage.named('FanoutQueue')}")

    logs = _allow(
        ("logs:CreateLogStream", "logs:PutLogEvents"),
        f"arn:*:logs:*:*:log-group:{log_group or stage.log_group(function)}:*",
    )
    keys = _allow(
        ("secretsmanager:GetSecretValue",), f"arn:*:secretsmanager:*:*:secret:{stage.prefix}*"
    )
    opening = [on(CONNECTIONS, "PutItem"), on(USERS, "UpdateItem"), on(GROUPS, "PutItem")]
    ending = [
        on(CONNECTIONS, "DeleteItem"),
        on(USERS, "UpdateItem"),
        on(GROUPS, "DeleteItem"),
        on(HISTORY, "PutItem"),
    ]
    # Whoever calls a connection finds that it is gone, stale, or refused, and tells its user.
    calling = [
        _allow(("execute-api:ManageConnections",), "arn:*:execute-api:*:*:*/api/*/@connections/*"),
        on(CONNECTIONS, "UpdateItem"),
        *ending,
        on(USERS, "BatchGetItem"),
        _allow(("sns:Publish",), f"arn:*:sns:*:*:{stage.prefix}*"),
    ]
    sending = [
        on(CONNECTIONS, "BatchGetItem", "Scan"),
        on(GROUPS, "Query"),
        *calling,
        on_queue("sqs:SendMessage", "sqs:GetQueueUrl"),
    ]
    by_function: dict[str, list[Statement]] = {
        "rest_authorizer": [keys],
        "connect_authorizer": [keys],
        "websocket_connect": [*opening, *calling],
        "websocket_disconnect": ending,
        "websocket_message": [
            keys,  # of a token to refresh with
            *sending,
            on(MESSAGES, "PutItem"),
            on(CONNECTIONS, "GetItem"),
            on(GROUPS, "PutItem"),
            on(HISTORY, "BatchWriteItem", "Query"),
        ],
        "api_handler": [
            *sending,
            on(MESSAGES, "GetItem", "PutItem", "UpdateItem"),
            on(CONNECTIONS, "GetItem"),
            on(USERS, "GetItem"),
            on(GROUPS, "BatchGetItem"),  # for /health, which looks at all tables
            on(MESSAGES, "BatchGetItem"),
            on(HISTORY, "BatchGetItem", "BatchWriteItem"),
        ],
        "sweep": [
            on(CONNECTIONS, "BatchGetItem", "Scan"),
            on(USERS, "Scan"),
            *calling,
        ],
        "deliver_queued": [
            *sending,
            on(MESSAGES, "BatchGetItem", "UpdateItem"),
            on_queue("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"),
        ],
    }
    statements = [logs, *by_function[function]]
    if traced:
        statements.append(_allow(TRACING, "*"))
    return {"Version": "2012-10-17", "Statement": _merged(statements)}


def _allow(actions: Sequence[str], resource: str) -> Statement:
    return {"Effect": "Allow", "Action": sorted(set(actions)), "Resource": resource}


def _merged(statements: Sequence[Statement]) -> list[Statement]:
    """One statement for each resource."""
    actions: dict[str, list[str]] = {}
    for statement in statements:
        actions.setdefault(statement["Resource"], []).extend(statement["Action"])
    return [_allow(allowed, resource) for resource, allowed in actions.items()]
