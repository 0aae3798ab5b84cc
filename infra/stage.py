"""The names of a stage's resources, which all begin with `herald-<stage>`."""

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chalicelib import aws_limits
from chalicelib.stage import PREFIX, named

PROJECT = Path(__file__).resolve().parent.parent
STAGE_NAME = re.compile(r"[a-z][a-z0-9]{0,19}")
API_STAGE = "api"  # Chalice's name for the stage of both APIs
BATCH_SECONDS = "HERALD_FANOUT_BATCH_SECONDS"
DEFAULT_REGION = "us-east-1"  # Chalice asks for a region even where none matters

FUNCTIONS = {
    "api_handler": "APIHandler",
    "rest_authorizer": "RestAuthorizer",
    "connect_authorizer": "ConnectAuthorizer",
    "websocket_connect": "WebsocketConnect",
    "websocket_message": "WebsocketMessage",
    "websocket_disconnect": "WebsocketDisconnect",
    "sweep": "Sweep",
    "deliver_queued": "DeliverQueued",
}
"""The functions: Chalice's name of each, and the logical id of its resource in the template."""

RESOURCES: dict[str, Any] = json.loads((PROJECT / "infra" / "resources.json").read_text())[
    "Resources"
]
TABLES = {
    "HERALD_CONNECTIONS_TABLE": "ConnectionsTable",
    "HERALD_USERS_TABLE": "UsersTable",
    "HERALD_GROUPS_TABLE": "GroupsTable",
    "HERALD_MESSAGES_TABLE": "MessagesTable",
    "HERALD_HISTORY_TABLE": "HistoryTable",
}
"""The tables: the setting with each one's name, and its logical id in `resources.json`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One deployment, such as `dev`."""

    name: str

    def __post_init__(self) -> None:
        if not STAGE_NAME.fullmatch(self.name) or self.name == "local":
            raise ValueError(
                f"STAGE holds {self.name!r}; allowed: up to 20 of a-z and 0-9, a letter first,"
                " but not local"
            )

    @property
    def prefix(self) -> str:
        """The beginning of every name that contains more than the stage's."""
        return f"{PREFIX}{self.name}-"

    @property
    def stack_name(self) -> str:
        """The name of the stage's CloudFormation stack, of its dashboard and of its app."""
        return f"{PREFIX}{self.name}"

    def named(self, resource: str) -> str:
        """Return the name of a table or a queue, given its logical id."""
        properties = RESOURCES[resource]["Properties"]
        name: str = properties.get("TableName") or properties["QueueName"]
        return named(self.name, name.removeprefix(PREFIX))

    @property
    def signing_key(self) -> str:
        """The name of the secret that `make resources` creates."""
        return named(self.name, "signing-key")

    def function(self, function: str) -> str:
        """Return the name that `chalice deploy` gives a function."""
        return self.stack_name if function == "api_handler" else self.prefix + function

    def log_group(self, function: str) -> str:
        """Return the log group of a function that CloudFormation deploys."""
        return f"/herald/{self.name}/{function}"

    def chalice_log_group(self, function: str) -> str:
        """Return the log group of a function that `chalice deploy` deploys: Lambda's own, which
        `chalice logs` reads."""
        return f"/aws/lambda/{self.function(function)}"

    @property
    def queue_variable(self) -> dict[str, str]:
        """The variable with the queue's URL, for a command that imports the app.

        The worker's decorator takes the queue's name from the end of the URL; nothing reads the
        rest, which isn't known before the deployment.
        """
        return {"HERALD_FANOUT_QUEUE_URL": f"https://sqs.invalid/{self.named('FanoutQueue')}"}


def queues_and_tables(
    batch_seconds: int, *, function_seconds: int = aws_limits.FUNCTION_SECONDS
) -> dict[str, Any]:
    """Return a copy of `resources.json`, in which the queue hides a job for long enough.

    Args:
        batch_seconds: The batching window of the worker.
        function_seconds: The time-out of the worker.
    """
    resources: dict[str, Any] = copy.deepcopy(RESOURCES)
    resources["FanoutQueue"]["Properties"]["VisibilityTimeout"] = aws_limits.visibility_seconds(
        batch_seconds, function_seconds=function_seconds
    )
    return resources
