"""A deployment's names. All that belongs to it is called `herald-<stage>-…`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
STAGE_NAME = re.compile(r"[a-z][a-z0-9]{0,19}")
PREFIX = "herald-"

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
WORKER = FUNCTIONS["deliver_queued"]

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
        return self.prefix + name.removeprefix(PREFIX)

    def log_group(self, function: str) -> str:
        """Where a function logs."""
        return f"/herald/{self.name}/{function}"

    @property
    def resources(self) -> dict[str, Any]:
        """The tables and queues, under this stage's names."""
        named: dict[str, Any] = json.loads(json.dumps(RESOURCES))
        for logical_id, resource in named.items():
            attribute = "TableName" if "TableName" in resource["Properties"] else "QueueName"
            resource["Properties"][attribute] = self.named(logical_id)
        return named

    @property
    def environment(self) -> dict[str, str]:
        """What each function is told. Of the queue's URL only the name is known before it is
        there: the template puts the whole in its place."""
        tables = {variable: self.named(table) for variable, table in TABLES.items()}
        queue = f"https://sqs.invalid/{self.named('FanoutQueue')}"
        return {"HERALD_STAGE": self.name, **tables, "HERALD_FANOUT_QUEUE_URL": queue}
