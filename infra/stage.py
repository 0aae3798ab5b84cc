"""A deployment's names. All that belongs to it is called `herald-<stage>-…`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chalicelib.stage import PREFIX, named

PROJECT = Path(__file__).resolve().parent.parent
STAGE_NAME = re.compile(r"[a-z][a-z0-9]{0,19}")
API_STAGE = "api"  # Chalice's name for the stage of both APIs

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
"""Chalice's names of the functions, and those of their resources in its template."""

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
"""Where the functions read the name of each table."""


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
        return f"{PREFIX}{self.name}-"

    def named(self, resource: str) -> str:
        """The name of a table or a queue, by its logical id."""
        properties = RESOURCES[resource]["Properties"]
        name: str = properties.get("TableName") or properties["QueueName"]
        return named(self.name, name.removeprefix(PREFIX))

    @property
    def signing_key(self) -> str:
        """The name of the secret that `make resources` makes."""
        return named(self.name, "signing-key")

    def function(self, function: str) -> str:
        """The name that `chalice deploy` gives a function."""
        return self.prefix + function if function != "api_handler" else self.prefix[:-1]

    def log_group(self, function: str) -> str:
        """The log group of a function of a packaged template."""
        return f"/herald/{self.name}/{function}"

    def chalice_log_group(self, function: str) -> str:
        """The log group of a function of `chalice deploy`: Lambda's own, in which `chalice logs`
        looks."""
        return f"/aws/lambda/{self.function(function)}"

    @property
    def resources(self) -> dict[str, Any]:
        """The tables and queues, under this stage's names."""
        named: dict[str, Any] = json.loads(json.dumps(RESOURCES))
        for logical_id, resource in named.items():
            attribute = "TableName" if "TableName" in resource["Properties"] else "QueueName"
            resource["Properties"][attribute] = self.named(logical_id)
        return named

    @property
    def queue_variable(self) -> dict[str, str]:
        """The variable of the queue, for a command that imports the app: the decorator of the
        worker takes the name from the end of the URL, and the rest isn't known there."""
        return {"HERALD_FANOUT_QUEUE_URL": f"https://sqs.invalid/{self.named('FanoutQueue')}"}
