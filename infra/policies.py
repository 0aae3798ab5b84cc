"""The IAM policy of each function: the actions that it needs, on the resources that it needs.

Regions and accounts are wildcards: with global tables a worker calls `@connections` in other
regions, and the same policy serves every account that it is deployed to.
"""

from collections.abc import Sequence
from typing import Any

from infra.stage import Stage

Statement = dict[str, Any]

# DynamoDB's TransactWriteItems needs the permissions of the operations that it contains:
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis-iam.html
CONNECTIONS, USERS, GROUPS, MESSAGES, HISTORY = (
    "ConnectionsTable",
    "UsersTable",
    "GroupsTable",
    "MessagesTable",
    "HistoryTable",
)
TRACING = ("xray:PutTelemetryRecords", "xray:PutTraceSegments")
"""X-Ray's actions, which can't be limited to a resource:
https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsx-ray.html"""


def policy(
    stage: Stage, function: str, *, log_group: str | None = None, traced: bool = False
) -> dict[str, Any]:
    """Return the policy document of a function's role.

    Args:
        stage: The stage whose resources the function may use.
        function: Chalice's name of the function.
        log_group: Where it may log; by default the group of a function that CloudFormation deploys.
        traced: Whether it may send traces to X-Ray.
    """

    logs = _allow(
        ("logs:CreateLogStream", "logs:PutLogEvents"),
        f"arn:*:logs:*:*:log-group:{log_group or stage.log_group(function)}:*",
    )
    statements = [logs, *_by_function(_Allow(stage))[function]]
    if traced:
        statements.append(_allow(TRACING, "*"))
    return {"Version": "2012-10-17", "Statement": _merged(statements)}


class _Allow:
    """Builds statements that allow actions on a stage's resources."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def table(self, table: str, *operations: str) -> Statement:
        """Allow operations of DynamoDB on a table."""
        actions = [f"dynamodb:{operation}" for operation in operations]
        return _allow(actions, f"arn:*:dynamodb:*:*:table/{self._stage.named(table)}")

    def queue(self, *operations: str) -> Statement:
        """Allow operations of SQS on the queue of jobs."""
        actions = [f"sqs:{operation}" for operation in operations]
        return _allow(actions, f"arn:*:sqs:*:*:{self._stage.named('FanoutQueue')}")

    def secrets(self) -> Statement:
        """Allow reading the stage's secrets."""
        return _allow(
            ("secretsmanager:GetSecretValue",),
            f"arn:*:secretsmanager:*:*:secret:{self._stage.prefix}*",
        )

    def notices(self) -> Statement:
        """Allow publishing to the stage's topics."""
        return _allow(("sns:Publish",), f"arn:*:sns:*:*:{self._stage.prefix}*")


def _by_function(allow: _Allow) -> dict[str, list[Statement]]:
    """Return each function's statements, from what connecting, disconnecting, delivering and
    sending need."""
    disconnecting = _disconnecting(allow)
    delivering = _delivering(allow)
    sending = [
        allow.table(CONNECTIONS, "BatchGetItem", "Scan"),
        allow.table(GROUPS, "Query"),
        *delivering,
        allow.queue("SendMessage", "GetQueueUrl"),
    ]
    return {
        "rest_authorizer": [allow.secrets()],
        "connect_authorizer": [allow.secrets()],
        "websocket_connect": [
            allow.table(CONNECTIONS, "PutItem"),
            allow.table(USERS, "UpdateItem"),
            allow.table(GROUPS, "PutItem"),
            *delivering,
        ],
        "websocket_disconnect": disconnecting,
        "websocket_message": [
            allow.secrets(),  # to verify the new token of a `refresh`
            *sending,
            allow.table(MESSAGES, "PutItem"),
            allow.table(CONNECTIONS, "GetItem"),
            allow.table(GROUPS, "PutItem"),
            allow.table(HISTORY, "BatchWriteItem", "Query"),
        ],
        "api_handler": [
            *sending,
            allow.table(MESSAGES, "GetItem", "PutItem", "UpdateItem"),
            allow.table(CONNECTIONS, "GetItem"),
            allow.table(USERS, "GetItem"),
            allow.table(GROUPS, "BatchGetItem"),  # for /health, which checks every table
            allow.table(MESSAGES, "BatchGetItem"),
            allow.table(HISTORY, "BatchGetItem", "BatchWriteItem"),
        ],
        "sweep": [
            allow.table(CONNECTIONS, "BatchGetItem", "Scan"),
            allow.table(USERS, "Scan"),
            *delivering,
        ],
        "deliver_queued": [
            *sending,
            allow.table(MESSAGES, "BatchGetItem", "UpdateItem"),
            allow.queue("ReceiveMessage", "DeleteMessage", "GetQueueAttributes"),
        ],
    }


def _disconnecting(allow: _Allow) -> list[Statement]:
    return [
        allow.table(CONNECTIONS, "DeleteItem"),
        allow.table(USERS, "UpdateItem"),
        allow.table(GROUPS, "DeleteItem"),
        allow.table(HISTORY, "PutItem"),
    ]


def _delivering(allow: _Allow) -> list[Statement]:
    """Allow calling a connection, and recording that it is gone, stale or refused: its items are
    marked or removed, and a notice says so."""
    return [
        _allow(("execute-api:ManageConnections",), "arn:*:execute-api:*:*:*/api/*/@connections/*"),
        allow.table(CONNECTIONS, "UpdateItem"),
        *_disconnecting(allow),
        allow.table(USERS, "BatchGetItem"),
        allow.notices(),
    ]


def _allow(actions: Sequence[str], resource: str) -> Statement:
    return {"Effect": "Allow", "Action": sorted(set(actions)), "Resource": resource}


def _merged(statements: Sequence[Statement]) -> list[Statement]:
    """Merge the statements of each resource into one."""
    actions: dict[str, list[str]] = {}
    for statement in statements:
        actions.setdefault(statement["Resource"], []).extend(statement["Action"])
    return [_allow(allowed, resource) for resource, allowed in actions.items()]
