"""Who is asking: the user behind a token, and what they may do.

No I/O here. A principal travels from an authorizer to the handlers as API Gateway's flat
authorizer context, whose values are strings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote, unquote

from chalicelib.errors import InsufficientScope, TokenExpired


class Scope(StrEnum):
    """What a token's `scope` can allow."""

    WS_CONNECT = "ws:connect"
    MESSAGES_SEND = "messages:send"
    MESSAGES_BROADCAST = "messages:broadcast"
    USERS_READ = "users:read"
    CONNECTIONS_MANAGE = "connections:manage"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated user. `expires_at` is the token's `exp`, in epoch seconds; `leeway` is how
    many seconds longer it is accepted, since clocks differ."""

    user_id: str
    expires_at: int
    leeway: int = 0
    tenant: str | None = None
    scopes: frozenset[str] = frozenset()
    groups: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The user's key in the users table: unique over tenants."""
        return user_key(self.tenant, self.user_id)

    @property
    def accepted_until(self) -> int:
        """When the token is no longer accepted, in epoch seconds."""
        return self.expires_at + self.leeway

    def require(self, scope: Scope) -> None:
        """Raise InsufficientScope unless the token's scopes hold `scope`."""
        if scope not in self.scopes:
            raise InsufficientScope(scope)

    def require_unexpired(self, now: float) -> None:
        """Raise TokenExpired at `now` (epoch seconds): API Gateway may have cached a verdict."""
        if now >= self.accepted_until:
            raise TokenExpired("the token has expired")

    def may_join(self, group: str) -> bool:
        """Whether the token's groups name `group`, or have a `*` that stands for it."""
        return any(
            group == allowed or (allowed.endswith("*") and group.startswith(allowed[:-1]))
            for allowed in self.groups
        )

    @property
    def own_groups(self) -> frozenset[str]:
        """The groups that a connection joins as it opens: those named without `*`."""
        return frozenset(group for group in self.groups if not group.endswith("*"))

    def to_context(self) -> dict[str, str]:
        """As an authorizer's context: flat, every value a string."""
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
        """The inverse of `to_context`; what API Gateway adds to the context is passed over."""
        return cls(
            user_id=context["userId"],
            expires_at=int(context["expiresAt"]),
            leeway=int(context["leeway"]),
            tenant=context.get("tenant"),
            scopes=parse_scopes(context["scope"]),
            groups=tuple(json.loads(context["groups"])),
        )


def parse_scopes(scope: str) -> frozenset[str]:
    """The scopes of a space-separated list (RFC 6749 section 3.3), by U+0020 alone."""
    return frozenset(scope.split(" ")) - {""}


def group_key(tenant: str | None, group: str) -> str:
    """One string for a group of a tenant, as `user_key` for a user."""
    return user_key(tenant, group)


def user_key(tenant: str | None, user_id: str) -> str:
    """One string for a user of a tenant. The tenant is quoted, so the first `/` ends it."""
    return f"{quote(tenant or '', safe='')}/{user_id}"


def split_user_key(key: str) -> tuple[str | None, str]:
    """The tenant and the user id of a `user_key`."""
    tenant, _, user_id = key.partition("/")
    return unquote(tenant) or None, user_id
