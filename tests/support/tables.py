"""Herald's tables for tests of the store, and a client that counts its calls."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from chalicelib.auth.principal import Principal, group_key, user_key
from chalicelib.clock import EpochMs, EpochSeconds
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.connections import CACHED_CONNECTIONS, Connections
from chalicelib.store.dynamodb import MAX_BATCH_WRITE, Store
from chalicelib.store.handshakes import Handshakes
from chalicelib.store.items import Connection, Recipient
from chalicelib.store.memberships import Memberships
from chalicelib.store.rate_limits import Rate, RateLimit, UserRateLimiter
from chalicelib.store.schema import (
    CONNECT_RATE_ATTRIBUTE,
    KEY_ATTRIBUTES,
    MESSAGE_RATE_ATTRIBUTE,
    REACH_PREFIX,
    READ_RATE_ATTRIBUTE,
    RESUME_RATE_ATTRIBUTE,
    Tables,
)
from chalicelib.store.users import Users
from infra import stage as infra

TABLES = Tables(
    "herald-connections", "herald-users", "herald-groups", "herald-messages", "herald-history"
)
CREATED_WITH = ("AttributeDefinitions", "BillingMode", "GlobalSecondaryIndexes", "KeySchema")
HISTORY_SECONDS = 300
NOW = EpochMs(1_995_477_071_772)
"""A time in the far future, since emulators delete expired items, as DynamoDB does."""

LATER = EpochSeconds(NOW // 1000 + 3600)
UNLIMITED = Rate.per_second(1_000_000, 1_000_000)


class Counted:
    """A DynamoDB client that counts the calls of each operation.

    It refuses placeholders that no expression uses, as DynamoDB does and moto doesn't.
    """

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
    """Raise AssertionError if an expression doesn't use a placeholder, as DynamoDB does.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Expressions.html
    """
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


def limiter(attribute: str, rate: Rate = UNLIMITED, quota: int = 0) -> UserRateLimiter:
    return UserRateLimiter(RateLimit(attribute, rate, quota))


def connections_of(
    client: Any,
    limit: int = 3,
    connects: Rate = UNLIMITED,
    messages: Rate = UNLIMITED,
    quota: int = 0,
    metrics: Metrics | None = None,
    cached_connections: int = CACHED_CONNECTIONS,
) -> Connections:
    """Return the transitions over `client`, with unlimited rates unless given."""
    store = Store(client, TABLES)
    return Connections(
        store,
        handshakes=Handshakes(
            store, limit=limit, limiter=limiter(CONNECT_RATE_ATTRIBUTE, connects)
        ),
        message_limiter=limiter(MESSAGE_RATE_ATTRIBUTE, messages, quota),
        memberships=Memberships(store, seconds=HISTORY_SECONDS),
        metrics=metrics or Metrics("test"),
        cached_connections=cached_connections,
    )


def users_of(
    client: Any, messages: Rate = UNLIMITED, quota: int = 0, reads: Rate = UNLIMITED
) -> Users:
    """Return the users over `client`, with unlimited rates unless given."""
    return Users(
        Store(client, TABLES),
        message_limiter=limiter(MESSAGE_RATE_ATTRIBUTE, messages, quota),
        read_limiter=limiter(READ_RATE_ATTRIBUTE, reads),
        resume_limiter=limiter(RESUME_RATE_ATTRIBUTE),
    )


def connection(
    connection_id: str, user: str, tenant: str | None = None, *groups: str, at: EpochMs = NOW
) -> Connection:
    """Return a connection that opens at `at` and joins `groups`."""
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
    """Yield every item of a table."""
    for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        yield from page["Items"]


class Remembering:
    """A DynamoDB client that caches a scan until the table is written to, always through it.

    For tests that read whole tables after each step, since most steps write to one or none.
    """

    READS = frozenset({"batch_get_item", "get_item", "get_paginator", "query", "scan"})

    def __init__(self, client: Any) -> None:
        self._client = client
        self._items: dict[str, list[Any]] = {}

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._client, operation)
        if operation in self.READS:
            return call

        def write(*arguments: Any, **parameters: Any) -> Any:
            try:
                return call(*arguments, **parameters)
            finally:
                for table in _tables_written(parameters):
                    self._items.pop(table, None)

        return write

    def items(self, table: str) -> list[Any]:
        """Return every item of a table."""
        if table not in self._items:
            self._items[table] = list(scan(self._client, table))
        return self._items[table]


def _tables_written(parameters: dict[str, Any]) -> set[str]:
    """Return the tables that a call with these parameters may write to."""
    if "TransactItems" in parameters:
        return {
            action["TableName"] for item in parameters["TransactItems"] for action in item.values()
        }
    if "RequestItems" in parameters:
        return set(parameters["RequestItems"])
    return {parameters["TableName"]}


def create(client: Any, tables: Tables) -> None:
    """Create tables with the keys and indexes of Herald's, and no other options."""
    for logical_id, name in zip(infra.TABLES.values(), tables, strict=True):
        properties = infra.RESOURCES[logical_id]["Properties"]
        used = {key: properties[key] for key in CREATED_WITH if key in properties}
        client.create_table(**{**used, "TableName": name})


def empty(client: Any, tables: Tables) -> None:
    """Delete every item of the tables."""
    deletions = [
        (table, {"DeleteRequest": {"Key": {name: item[name] for name in names}}})
        for table, names in zip(tables, KEY_ATTRIBUTES.values(), strict=True)
        for item in scan(client, table)
    ]
    for start in range(0, len(deletions), MAX_BATCH_WRITE):
        requests = defaultdict(list)
        for table, deletion in deletions[start : start + MAX_BATCH_WRITE]:
            requests[table].append(deletion)
        client.batch_write_item(RequestItems=dict(requests))


def assert_they_agree(items: Callable[[str], Iterable[Any]], tables: Tables, limit: int) -> None:
    """Assert that connections, users and groups agree. `items` returns the items of a table."""
    by_id = {item["connectionId"]["S"]: item for item in items(tables.connections)}
    tied: dict[str, str] = {}
    for user in items(tables.users):
        ids = set(user.get("connections", {"SS": []})["SS"])
        assert len(ids) <= limit
        assert ids == {name.removeprefix(REACH_PREFIX) for name in user if name[0] == REACH_PREFIX}
        tied |= dict.fromkeys(ids, user["user"]["S"])
    assert tied == {
        one: user_key(item.get("tenant", {}).get("S"), item["userId"]["S"])
        for one, item in by_id.items()
    }
    memberships = {(item["group"]["S"], item["connectionId"]["S"]) for item in items(tables.groups)}
    assert memberships == {
        (group_key(item.get("tenant", {}).get("S"), group), one)
        for one, item in by_id.items()
        for group in item.get("groups", {"SS": []})["SS"]
    }
