"""Who is asking: the user behind a token, and what they may do.

No I/O here. A principal travels from an authorizer to the handlers as API Gateway's flat
authorizer context, whose values are strings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from chalicelib.errors import Forbidden, TokenExpired


class Scope(StrEnum):
    """What a token's `scope` can allow."""

    WS_CONNECT = "ws:connect"
    MESSAGES_SEND = "messages:send"
    MESSAGES_BROADCAST = "messages:broadcast"
    USERS_READ = "users:read"
    CONNECTIONS_MANAGE = "connections:manage"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated user. `expires_at`: the token's `exp` plus the leeway, in epoch seconds."""

    user_id: str
    expires_at: int
    tenant: str | None = None
    scopes: frozenset[str] = frozenset()
    groups: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The user's key in the users table: unique over tenants."""
        return user_key(self.tenant, self.user_id)

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the token's scopes hold `scope`."""
        if scope not in self.scopes:
            raise Forbidden(f"the token lacks the scope {scope}")

    def require_unexpired(self, now: float) -> None:
        """Raise TokenExpired at `now` (epoch seconds): API Gateway may have cached a verdict."""
        if now >= self.expires_at:
            raise TokenExpired("the token has expired")

    def to_context(self) -> dict[str, str]:
        """As an authorizer's context: flat, every value a string."""
        context = {
            "userId": self.user_id,
            "expiresAt": str(self.expires_at),
            "scope": " ".join(sorted(self.scopes)),
            "groups": json.dumps(self.groups),
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
            tenant=context.get("tenant"),
            scopes=frozenset(context["scope"].split()),
            groups=tuple(json.loads(context["groups"])),
        )


def user_key(tenant: str | None, user_id: str) -> str:
    """One string for a user of a tenant. The tenant is quoted, so the first `/` ends it."""
    return f"{quote(tenant or '', safe='')}/{user_id}"
