"""The events of a WebSocket API, as API Gateway sends them to Lambda.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-mapping-template-reference.html
"""

import re
from collections.abc import Mapping
from typing import Any

from chalicelib.auth.bearer import Verify, handshake_token
from chalicelib.auth.principal import Principal, Scope
from chalicelib.store.items import Recipient

REGIONAL_HOST = re.compile(r"\.execute-api\.[a-z0-9-]+\.amazonaws\.com(\.cn)?$")


class WebSocketEvent:
    """A CONNECT, MESSAGE, DISCONNECT or authorizer event, read by name."""

    def __init__(self, raw: Mapping[str, Any], region: str | None = None) -> None:
        """`region` is the API's, which is its functions', where that is known."""
        self._raw = raw
        self._region = region
        self._context: Mapping[str, Any] = raw["requestContext"]

    @property
    def connection_id(self) -> str:
        return self._context["connectionId"]  # type: ignore[no-any-return]

    @property
    def connected_at(self) -> int:
        """Epoch milliseconds; the same in every event of a connection."""
        return int(self._context["connectedAt"])

    @property
    def source_ip(self) -> str:
        """The client's address as API Gateway saw it, never a header that a client can send."""
        return self._context["identity"]["sourceIp"]  # type: ignore[no-any-return]

    @property
    def endpoint(self) -> str:
        """The URL before `/@connections/…` that reaches the connection, from any region.

        Several regions may share a custom domain, and it may have a base path instead of the stage:
        the API's own name is what a connection is called by. It must not be disabled.
        https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-custom-domain-names.html
        """
        host, api = self._context["domainName"], self._context.get("apiId")
        own = REGIONAL_HOST.search(host) or ":" in host  # with a port it is no API Gateway's
        if self._region is not None and api is not None and not own:
            suffix = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
            host = f"{api}.execute-api.{self._region}.{suffix}"
        return f"https://{host}/{self._context['stage']}"

    @property
    def principal(self) -> Principal | None:
        """Whom the `$connect` authorizer let in, repeated in each event; None without one."""
        context = self._context.get("authorizer") or {}
        return Principal.from_context(context) if "userId" in context else None

    def recipient(self, principal: Principal) -> Recipient:
        """The connection, as the one of `principal`."""
        return Recipient(
            self.connection_id,
            principal.user_id,
            principal.tenant,
            self.endpoint,
            connected_at=self.connected_at,
        )

    @property
    def headers(self) -> dict[str, str]:
        """The handshake's headers, by lower-case name; a MESSAGE has none."""
        headers: Mapping[str, str] = self._raw.get("headers") or {}
        return {name.lower(): value for name, value in headers.items()}

    @property
    def subprotocols(self) -> list[str]:
        """What `Sec-WebSocket-Protocol` offers, in order."""
        offered = self.headers.get("sec-websocket-protocol", "").split(",")
        return [subprotocol.strip() for subprotocol in offered if subprotocol.strip()]

    @property
    def query(self) -> Mapping[str, str]:
        return self._raw.get("queryStringParameters") or {}

    @property
    def body(self) -> str:
        """A MESSAGE's text."""
        return self._raw.get("body") or ""


def authenticate(event: WebSocketEvent, verify: Verify) -> Principal:
    """Whom a handshake's token names.

    Raises Unauthorized, Forbidden without `ws:connect`, and Unavailable.
    """
    token = handshake_token(event.headers, event.subprotocols, event.query)
    principal = verify(token)
    principal.require(Scope.WS_CONNECT)
    return principal
