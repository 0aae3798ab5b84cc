"""The events of a WebSocket API, as API Gateway passes them to Lambda.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-mapping-template-reference.html
"""

import re
from collections.abc import Mapping
from typing import Any

from chalicelib.auth.bearer import Verify, handshake_token
from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs, epoch_ms
from chalicelib.store.items import Recipient

REGIONAL_HOST = re.compile(r"\.execute-api\.[a-z0-9-]+\.amazonaws\.com(\.cn)?$")


class WebSocketEvent:
    """A CONNECT, MESSAGE, DISCONNECT or authorizer event."""

    def __init__(self, raw: Mapping[str, Any], region: str | None = None) -> None:
        """Take the event's fields, and the region of the API if it is known."""
        self._raw = raw
        self._region = region
        self._context: Mapping[str, Any] = raw["requestContext"]

    @property
    def connection_id(self) -> str:
        """The id that API Gateway gave the connection."""
        return self._context["connectionId"]  # type: ignore[no-any-return]

    @property
    def connected_at(self) -> EpochMs:
        """The time of the handshake; all events of a connection agree."""
        return epoch_ms(self._context["connectedAt"])

    @property
    def source_ip(self) -> str:
        """The client's address as API Gateway saw it, not from a header that a client can forge."""
        return self._context["identity"]["sourceIp"]  # type: ignore[no-any-return]

    @property
    def endpoint(self) -> str:
        """The URL before `/@connections/…` that reaches the connection from every region.

        It has the API's own domain name, which must not be disabled: regions may share a custom
        domain name, and that may have a base path instead of the stage.
        https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-custom-domain-names.html
        """
        host, api = self._context["domainName"], self._context.get("apiId")
        is_own = REGIONAL_HOST.search(host) or ":" in host  # a local gateway's has a port
        if self._region is not None and api is not None and not is_own:
            suffix = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
            host = f"{api}.execute-api.{self._region}.{suffix}"
        return f"https://{host}/{self._context['stage']}"

    @property
    def principal(self) -> Principal | None:
        """The principal that the `$connect` authorizer returned; None if no authorizer ran."""
        context = self._context.get("authorizer") or {}
        return Principal.from_context(context) if "userId" in context else None

    def recipient(self, principal: Principal) -> Recipient:
        """Return the connection as a recipient that belongs to `principal`."""
        return Recipient(
            self.connection_id,
            principal.user_id,
            principal.tenant,
            self.endpoint,
            connected_at=self.connected_at,
        )

    @property
    def headers(self) -> dict[str, str]:
        """The handshake's headers by lower-case name; empty for a MESSAGE."""
        headers: Mapping[str, str] = self._raw.get("headers") or {}
        return {name.lower(): value for name, value in headers.items()}

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that `Sec-WebSocket-Protocol` offers, in order."""
        offered = self.headers.get("sec-websocket-protocol", "").split(",")
        return [subprotocol.strip() for subprotocol in offered if subprotocol.strip()]

    @property
    def query(self) -> Mapping[str, str]:
        """The handshake's query parameters."""
        return self._raw.get("queryStringParameters") or {}

    @property
    def body(self) -> str:
        """The text of a MESSAGE."""
        return self._raw.get("body") or ""


def authenticate(event: WebSocketEvent, verify: Verify) -> Principal:
    """Return the principal whom a handshake's token names.

    Raises Unauthorized, Unavailable, and InsufficientScope without `ws:connect`.
    """
    token = handshake_token(event.headers, event.subprotocols, event.query)
    principal = verify(token)
    principal.require(Scope.WS_CONNECT)
    return principal
