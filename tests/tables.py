"""What the tests of the storage share: Herald's tables, and a client that counts its calls."""

import re
from collections.abc import Iterator
from typing import Any

from chalicelib.connections import Connections
from chalicelib.limits import Limiter, Meter, Rate
from chalicelib.membership import Memberships
from chalicelib.metrics import Metrics
from chalicelib.principal import Principal, group_key, user_key
from chalicelib.records import REACH_PREFIX, Connection, Recipient, Tables

TABLES = Tables(
    "herald-connections", "herald-users", "herald-groups", "herald-messages", "herald-history"
)
HISTORY_SECONDS = 300
NOW = 1_995_477_071_772
"""Long after the tests, since the emulator removes items whose time is over, as DynamoDB does."""

LATER = NOW // 1000 + 3600
UNLIMITED = Rate.per_second(1_000_000, 1_000_000)


class Counted:
    """A DynamoDB client that counts the calls of each operation, and refuses what DynamoDB does
    and the emulator doesn't: a placeholder that no expression uses."""

    def __init__(self, client: Any) -> None:
        self.calls: list[str] = []
        self._client = client

    def __getattr__(self, operation: str) -> Any:
        def call(*arguments: Any, **parameters: Any) -> Any:
            self.calls.append(operation)
            for action in parameters.get("TransactItems", [{"": parameters}]):
                for written in action.values():
                    assert_placeholders_are_used(written)
            return getattr(self._client, operation)(*arguments, **parameters)

        return call


def assert_placeholders_are_used(parameters: dict[str, Any]) -> None:
    """https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Expressions.html"""
    expressions = " ".join(
        value for name, value in parameters.items() if name.endswith("Expression")
    )
    used = set(re.findall(r"[#:]\w+", expressions))
    given = {
        placeholder
        for kind in ("Names", "Values")
        for placeholder in parameters.get(f"ExpressionAttribute{kind}", {})
    }
    assert used == given


def meter(attribute: str, rate: Rate = UNLIMITED, quota: int = 0) -> Meter:
    return Meter(Limiter(attribute, rate, quota))


def connections_of(
    client: Any,
    limit: int = 3,
    connects: Rate = UNLIMITED,
    messages: Rate = UNLIMITED,
    quota: int = 0,
    metrics: Metrics | None = None,
) -> Connections:
    """The transitions over `client`; users may do as much as they like where nothing is said."""
    return Connections(
        client,
        TABLES,
        limit,
        meter("connectDue", connects),
        meter("messageDue", messages, quota),
        Memberships(client, TABLES, HISTORY_SECONDS),
        metrics or Metrics("test"),
    )


def connection(
    connection_id: str, user: str, tenant: str | None = None, *groups: str, at: int = NOW
) -> Connection:
    """A connection that opens at `at`, and joins `groups`."""
    principal = Principal(user, expires_at=LATER, tenant=tenant, groups=groups)
    return Connection(
        connection_id,
        principal,
        "https://example.com/prod",
        connected_at=at,
        timestamp=at,
        groups=frozenset(groups),
    )


def recipient(connection_id: str, user: str, tenant: str | None = None) -> Recipient:
    return connection(connection_id, user, tenant).recipient


def scan(client: Any, table: str) -> Iterator[Any]:
    """Every item of a table."""
    for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        yield from page["Items"]


def empty(client: Any, tables: Tables) -> None:
    """Delete whatever is in the tables."""
    for table, names in (
        (tables.connections, ("connectionId",)),
        (tables.users, ("user",)),
        (tables.groups, ("group", "connectionId")),
        (tables.messages, ("id",)),
        (tables.history, ("stream", "position")),
    ):
        for item in list(scan(client, table)):
            client.delete_item(TableName=table, Key={name: item[name] for name in names})


def assert_they_agree(client: Any, tables: Tables, limit: int) -> None:
    """What the tables say of connections, users and groups is one story."""
    items = {item["connectionId"]["S"]: item for item in scan(client, tables.connections)}
    tied: dict[str, str] = {}
    for user in scan(client, tables.users):
        ids = set(user.get("connections", {"SS": []})["SS"])
        assert len(ids) <= limit
        assert ids == {name.removeprefix(REACH_PREFIX) for name in user if name[0] == REACH_PREFIX}
        tied |= dict.fromkeys(ids, user["user"]["S"])
    assert tied == {
        one: user_key(item.get("tenant", {}).get("S"), item["userId"]["S"])
        for one, item in items.items()
    }
    memberships = {
        (item["group"]["S"], item["connectionId"]["S"]) for item in scan(client, tables.groups)
    }
    assert memberships == {
        (group_key(item.get("tenant", {}).get("S"), group), one)
        for one, item in items.items()
        for group in item.get("groups", {"SS": []})["SS"]
    }
