"""What the tests of the storage share: Herald's tables, and a client that counts its calls."""

from typing import Any

from chalicelib.connections import Connection
from chalicelib.principal import Principal

TABLES = ("herald-connections", "herald-users")
NOW = 1_795_477_071_772


class Counted:
    """A DynamoDB client that counts the calls of each operation."""

    def __init__(self, client: Any) -> None:
        self.calls: list[str] = []
        self._client = client

    def __getattr__(self, operation: str) -> Any:
        def call(*arguments: Any, **parameters: Any) -> Any:
            self.calls.append(operation)
            return getattr(self._client, operation)(*arguments, **parameters)

        return call


def connection(connection_id: str, user: str, tenant: str | None = None) -> Connection:
    principal = Principal(user, expires_at=NOW, tenant=tenant, groups=("g",))
    return Connection(connection_id, principal, "https://example.com/prod", NOW)
