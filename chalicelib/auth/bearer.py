"""Where a request has its token."""

from collections.abc import Callable, Mapping, Sequence

from chalicelib.auth.principal import Principal
from chalicelib.errors import Unauthorized

BEARER_SUBPROTOCOL_PREFIX = "bearer."

Verify = Callable[[str], Principal]
"""`TokenVerifier.verify`: whom a token names. What it takes is loaded when there is one to verify,
since most functions are told who calls, and start faster for it."""


def bearer_token(authorization: str) -> str:
    """The token of an `Authorization` header (RFC 6750 section 2.1). Raises Unauthorized."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("Authorization must be: Bearer <token>")
    return token.strip()


def handshake_token(
    headers: Mapping[str, str], subprotocols: Sequence[str], query: Mapping[str, str]
) -> str:
    """The token of a WebSocket handshake; the first place that holds one decides.

    `headers` has lower-case names. Raises Unauthorized when no place holds a token.
    """
    if "authorization" in headers:
        return bearer_token(headers["authorization"])
    for subprotocol in subprotocols:
        if subprotocol.startswith(BEARER_SUBPROTOCOL_PREFIX):
            return subprotocol.removeprefix(BEARER_SUBPROTOCOL_PREFIX)
    if query.get("token"):
        return query["token"]
    raise Unauthorized("no token")
