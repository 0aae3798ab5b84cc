"""The authenticated user, and what their token allows.

An authorizer passes a principal to the handlers in API Gateway's authorizer context, which is flat
and has strings as values.
"""

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote, unquote

from chalicelib.errors import InsufficientScope, TokenExpired


class Scope(StrEnum):
    """The scopes that Herald checks in a token's `scope`."""

    WS_CONNECT = "ws:connect"
    MESSAGES_SEND = "messages:send"
    MESSAGES_BROADCAST = "messages:broadcast"
    USERS_READ = "users:read"
    CONNECTIONS_MANAGE = "connections:manage"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated user, as their token describes them."""

    user_id: str
    expires_at: int
    """The token's `exp`, in epoch seconds."""
    _: KW_ONLY
    leeway: int = 0
    """How many seconds longer the token is accepted, since clocks differ."""
    tenant: str | None = None
    scopes: frozenset[str] = frozenset()
    groups: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The user's key in the users table, unique across tenants."""
        return user_key(self.tenant, self.user_id)

    @property
    def accepted_until(self) -> int:
        """The time from which the token is no longer accepted, in epoch seconds."""
        return self.expires_at + self.leeway

    def require(self, scope: Scope) -> None:
        """Raise InsufficientScope unless the token has `scope`."""
        if scope not in self.scopes:
            raise InsufficientScope(scope)

    def require_unexpired(self, now: float) -> None:
        """Raise TokenExpired if the token has expired at `now` (epoch seconds).

        The authorizer has checked this, but API Gateway may have cached its result.
        """
        if now >= self.accepted_until:
            raise TokenExpired("the token has expired")

    def may_join(self, group: str) -> bool:
        """Return whether a name or a pattern (`room-*`) of the token's groups matches `group`."""
        return any(
            group == allowed or (allowed.endswith("*") and group.startswith(allowed[:-1]))
            for allowed in self.groups
        )

    @property
    def own_groups(self) -> frozenset[str]:
        """The groups that a connection joins when it opens: the names that aren't patterns."""
        return frozenset(group for group in self.groups if not group.endswith("*"))

    def to_context(self) -> dict[str, str]:
        """Return the principal as an authorizer's context."""
        context = {
            "userId": self.user_id,
            "expiresAt": str(self.expires_at),
            "leeway": str(self.leeway),
            "scope": " ".join(sorted(self.scopes)),
            "groups": json.dumps(self.groups, ensure_ascii=False, separators=(",", ":")),
        }
        if self.tenant is not None:
            context["tenant"] = self.tenant
        return context

    @classmethod
    def from_context(cls, context: Mapping[str, Any]) -> "Principal":
        """Return the principal of a context; what API Gateway added to it is ignored."""
        return cls(
            user_id=context["userId"],
            expires_at=int(context["expiresAt"]),
            leeway=int(context["leeway"]),
            tenant=context.get("tenant"),
            scopes=parse_scopes(context["scope"]),
            groups=tuple(json.loads(context["groups"])),
        )


def parse_scopes(scope: str) -> frozenset[str]:
    """Split a list of scopes (RFC 6749 section 3.3), which only U+0020 separates."""
    return frozenset(scope.split(" ")) - {""}


def group_key(tenant: str | None, group: str) -> str:
    """Return the key of a group, unique across tenants."""
    return user_key(tenant, group)


def user_key(tenant: str | None, user_id: str) -> str:
    """Return the key of a user, unique across tenants: the quoted tenant, `/`, and the user id."""
    return f"{quote(tenant or '', safe='')}/{user_id}"


def split_user_key(key: str) -> tuple[str | None, str]:
    """Return the tenant and the user id of a `user_key`."""
    tenant, _, user_id = key.partition("/")
    return unquote(tenant) or None, user_id
