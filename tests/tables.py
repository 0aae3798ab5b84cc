"""What the tests of the storage share: Herald's tables, and a client that counts its calls."""

import re
from typing import Any

from chalicelib.connections import Connections
from chalicelib.limits import Limiter, Meter, Rate
from chalicelib.membership import Memberships
from chalicelib.metrics import Metrics
from chalicelib.principal import Principal
from chalicelib.records import Connection, Recipient, Tables

TABLES = Tables(
    "herald-connections", "herald-users", "herald-groups", "herald-messages", "herald-history"
)
HISTORY_SECONDS = 300
NOW = 1_795_477_071_772
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
    client: Any, limit: int = 3, connects: Rate = UNLIMITED, messages: Rate = UNLIMITED
) -> Connections:
    """The transitions over `client`; users may do as much as they like where nothing is said."""
    return Connections(
        client,
        TABLES,
        limit,
        meter("connectDue", connects),
        meter("messageDue", messages),
        Memberships(client, TABLES, HISTORY_SECONDS),
        Metrics("test"),
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
