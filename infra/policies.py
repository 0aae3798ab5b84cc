"""The IAM policy of each function: the actions that it needs, on the resources that it needs.

Regions and accounts are wildcards: with global tables a worker calls `@connections` in other
regions, and the same policy serves every account that it is deployed to.
"""

from collections.abc import Sequence
from typing import Any

from infra.configuration import StageConfiguration
from infra.parameters import if_set

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
KEY_OF_TEMPLATE = {"Ref": "KmsKey"}
"""The customer's key, where it is a parameter of the template."""
READS_AND_WRITES = ("kms:Decrypt", "kms:GenerateDataKey")
KEY_ACTIONS = {
    "dynamodb:": ("kms:Decrypt",),
    "secretsmanager:GetSecretValue": ("kms:Decrypt",),
    "sns:Publish": READS_AND_WRITES,
    "sqs:ReceiveMessage": ("kms:Decrypt",),
    "sqs:SendMessage": READS_AND_WRITES,
}
"""The actions of a service with the customer's key in the name of a function, by the beginning of
the function's own actions. DynamoDB has made each table's key when the table was created.

- https://docs.aws.amazon.com/kms/latest/developerguide/services-dynamodb.html
- https://docs.aws.amazon.com/secretsmanager/latest/userguide/security-encryption.html
- https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html
- https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html
"""


def policy(
    configuration: StageConfiguration,
    function: str,
    *,
    log_group: str | None = None,
    kms_key: str | dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return the policy document of a function's role.

    Args:
        configuration: The stage whose resources the function may use.
        function: Chalice's name of the function.
        log_group: Where it may log; by default the group of a function that CloudFormation deploys.
        kms_key: The ARN of the customer's key, or KEY_OF_TEMPLATE; None without such a key.
    """
    stage = configuration.stage
    logs = _allow(
        ("logs:CreateLogStream", "logs:PutLogEvents"),
        f"arn:*:logs:*:*:log-group:{log_group or stage.log_group(function)}:*",
    )
    statements = [logs, *_by_function(_Allow(configuration))[function]]
    if configuration.traced:
        statements.append(_allow(TRACING, "*"))
    merged = _merged(statements)
    if kms_key is not None:
        for statement in _key_statements(merged, kms_key):
            conditional = kms_key == KEY_OF_TEMPLATE
            merged.append(if_set("HasKmsKey", statement) if conditional else statement)
    return {"Version": "2012-10-17", "Statement": merged}


def _key_statements(statements: Sequence[Statement], key: Any) -> list[Statement]:
    """Allow what services do with the customer's key for these statements, and nothing else.

    https://docs.aws.amazon.com/kms/latest/developerguide/conditions-kms.html#conditions-kms-via-service
    """
    services: dict[str, set[str]] = {}
    for action in (action for statement in statements for action in statement["Action"]):
        for beginning, key_actions in KEY_ACTIONS.items():
            if action.startswith(beginning):
                for key_action in key_actions:
                    services.setdefault(key_action, set()).add(action.partition(":")[0])
    return [
        {
            "Effect": "Allow",
            "Action": [key_action],
            "Resource": key,
            "Condition": {
                "StringLike": {
                    "kms:ViaService": [f"{service}.*.amazonaws.com" for service in sorted(used)]
                }
            },
        }
        for key_action, used in sorted(services.items())
    ]


class _Allow:
    """Builds statements that allow actions on a stage's resources."""

    def __init__(self, configuration: StageConfiguration) -> None:
        self._stage = configuration.stage
        self._configuration = configuration

    def table(self, table: str, *operations: str) -> Statement:
        """Allow operations of DynamoDB on a table."""
        actions = [f"dynamodb:{operation}" for operation in operations]
        return _allow(actions, f"arn:*:dynamodb:*:*:table/{self._stage.named(table)}")

    def queue(self, *operations: str) -> Statement:
        """Allow operations of SQS on the queue of jobs."""
        actions = [f"sqs:{operation}" for operation in operations]
        return _allow(actions, f"arn:*:sqs:*:*:{self._stage.named('FanoutQueue')}")

    def signing_secret(self) -> list[Statement]:
        """Allow reading the secret that verifies tokens, if there is one."""
        return _reading(self._configuration.signing_secret)

    def encryption_keys(self) -> list[Statement]:
        """Allow reading the master keys of encrypted messages, if Secrets Manager has them."""
        return _reading(self._configuration.encryption_secret)

    def notices(self) -> Statement:
        """Allow publishing to the stage's topics."""
        return _allow(("sns:Publish",), f"arn:*:sns:*:*:{self._stage.prefix}*")


def _by_function(allow: _Allow) -> dict[str, list[Statement]]:
    """Return each function's statements, from what connecting, disconnecting, delivering and
    sending need."""
    disconnecting = _disconnecting(allow)
    delivering = _delivering(allow)
    sending = [
        allow.table(CONNECTIONS, "BatchGetItem"),
        allow.table(GROUPS, "Query"),
        *delivering,
        allow.queue("SendMessage", "GetQueueUrl"),
        *allow.encryption_keys(),
    ]
    return {
        "rest_authorizer": allow.signing_secret(),
        "connect_authorizer": allow.signing_secret(),
        "websocket_connect": [
            *allow.signing_secret(),  # to verify tokens while `$connect` has no authorizer
            allow.table(CONNECTIONS, "PutItem"),
            allow.table(USERS, "UpdateItem"),
            allow.table(GROUPS, "BatchWriteItem", "PutItem"),
            *delivering,
        ],
        "websocket_disconnect": disconnecting,
        "websocket_message": [
            *allow.signing_secret(),  # to verify the new token of a `refresh`
            *sending,
            allow.table(MESSAGES, "PutItem"),
            allow.table(CONNECTIONS, "GetItem"),
            allow.table(GROUPS, "DeleteItem", "PutItem"),
            allow.table(
                HISTORY, "BatchGetItem", "BatchWriteItem", "PutItem", "Query", "UpdateItem"
            ),
        ],
        "api_handler": [
            *sending,
            allow.table(MESSAGES, "GetItem", "PutItem", "UpdateItem"),
            allow.table(CONNECTIONS, "GetItem"),
            allow.table(USERS, "GetItem"),
            allow.table(GROUPS, "BatchGetItem"),  # for /health, which checks every table
            allow.table(MESSAGES, "BatchGetItem"),
            allow.table(HISTORY, "BatchGetItem", "BatchWriteItem", "UpdateItem"),
        ],
        "sweep": [
            allow.table(CONNECTIONS, "BatchGetItem", "Scan"),
            allow.table(USERS, "BatchGetItem", "Scan"),
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
        allow.table(CONNECTIONS, "DeleteItem", "GetItem"),
        allow.table(USERS, "UpdateItem"),
        allow.table(GROUPS, "BatchWriteItem"),
        allow.table(HISTORY, "BatchWriteItem"),
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


def _reading(secret: str | None) -> list[Statement]:
    """Allow reading a secret, given its ARN or the name that it has in each region.

    An ARN may lack the six characters that Secrets Manager adds to a name:
    https://docs.aws.amazon.com/secretsmanager/latest/userguide/auth-and-access_iam-policies.html
    """
    if secret is None:
        return []
    arn = secret if secret.startswith("arn:") else f"arn:*:secretsmanager:*:*:secret:{secret}"
    return [_allow(("secretsmanager:GetSecretValue",), one) for one in (arn, f"{arn}-??????")]


def _allow(actions: Sequence[str], resource: str) -> Statement:
    return {"Effect": "Allow", "Action": sorted(set(actions)), "Resource": resource}


def _merged(statements: Sequence[Statement]) -> list[Statement]:
    """Merge the statements of each resource into one."""
    actions: dict[str, list[str]] = {}
    for statement in statements:
        actions.setdefault(statement["Resource"], []).extend(statement["Action"])
    return [_allow(allowed, resource) for resource, allowed in actions.items()]
