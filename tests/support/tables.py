"""Herald's tables for tests of the store, and a client that counts its calls."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from chalicelib.auth.principal import Principal, group_key, user_key
from chalicelib.clock import EpochMs, EpochSeconds
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.activity import CACHED_CONNECTIONS, ActivityRecorder
from chalicelib.store.connections import Connections
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
    TIE_PREFIXES,
    Tables,
    roster_key,
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
        activity=ActivityRecorder(
            store,
            message_limiter=limiter(MESSAGE_RATE_ATTRIBUTE, messages, quota),
            cached_connections=cached_connections,
        ),
        memberships=Memberships(store, seconds=HISTORY_SECONDS),
        metrics=metrics or Metrics("test"),
    )


def users_of(
    client: Any, messages: Rate = UNLIMITED, quota: int = 0, reads: Rate = UNLIMITED
) -> Users:
    """Return the users over `client`, with unlimited rates unless given."""
    return Users(
        Store(client, TABLES),
        message_limiter=limiter(MESSAGE_RATE_ATTRIBUTE, messages, quota),
        read_limiter=limiter(READ_RATE_ATTRIBUTE, reads),
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


def assert_they_agree(
    items: Callable[[str], Iterable[Any]],
    tables: Tables,
    limit: int,
    ids: Collection[str] | None = None,
) -> None:
    """Assert that connections, users, the roster and groups agree, and that users keep the limit.

    Args:
        items: Returns the items of a table.
        tables: The tables' names.
        limit: The most connections of a user.
        ids: The connections to compare, each of which must be there; by default, all.
    """
    stored = {item["connectionId"]["S"]: item for item in items(tables.connections)}
    by_id = {one: item for one, item in stored.items() if ids is None or one in ids}
    assert ids is None or by_id.keys() == set(ids)
    expected: dict[tuple[str, str], Any] = {}
    for one, item in by_id.items():
        tenant = item.get("tenant", {}).get("S")
        expected[user_key(tenant, item["userId"]["S"]), one] = item["reach"]
        expected[roster_key(tenant, one)["group"]["S"], one] = item["reach"]
        for group in item.get("groups", {"SS": []})["SS"]:
            expected["in " + group_key(tenant, group), one] = item["reach"]
    found = {**_ties(items(tables.users), limit), **_entries(items(tables.groups))}
    assert expected == {key: at for key, at in found.items() if ids is None or key[1] in ids}


def assert_what_is_left_can_be_found(
    items: Callable[[str], Iterable[Any]], tables: Tables, limit: int
) -> None:
    """Assert that a sweep finds whatever functions that died have left.

    A membership must have its connection's item; a roster entry that, or its tie.
    """
    stored = {item["connectionId"]["S"] for item in items(tables.connections)}
    tied = {one for _, one in _ties(items(tables.users), limit)}
    for key, one in _entries(items(tables.groups)):
        assert one in stored or (key.startswith("*/") and one in tied)


def _ties(users: Iterable[Any], limit: int) -> dict[tuple[str, str], Any]:
    """Return how each tied connection is reached, by its user's key and its id."""
    ties: dict[tuple[str, str], Any] = {}
    for user in users:
        ids = set(user.get("connections", {"SS": []})["SS"])
        assert len(ids) <= limit
        assert ids == {name.removeprefix(REACH_PREFIX) for name in user if name[0] == REACH_PREFIX}
        assert ids >= {name[1:] for name in user if name[0] in TIE_PREFIXES}
        ties |= {(user["user"]["S"], one): user[REACH_PREFIX + one] for one in ids}
    return ties


def _entries(groups: Iterable[Any]) -> dict[tuple[str, str], Any]:
    """Return how each connection in the roster or in a group is reached.

    The keys are those of the table; those of groups begin with `in`, since users may have the same.
    """
    return {
        (
            key if (key := item["group"]["S"]).startswith("*/") else f"in {key}",
            item["connectionId"]["S"],
        ): item["reach"]
        for item in groups
    }
