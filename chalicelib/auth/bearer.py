"""Find the token of a request."""

from collections.abc import Callable, Mapping, Sequence

from chalicelib.auth.principal import Principal
from chalicelib.errors import Unauthorized

BEARER_SUBPROTOCOL_PREFIX = "bearer."

Verify = Callable[[str], Principal]
"""Verifies a token and returns its principal, as `TokenVerifier.verify` does.

A function is passed on instead of a verifier, so that the verifier can be created lazily. Handlers
whose caller is already authenticated never need it, which keeps their cold start short.
"""


def bearer_token(authorization: str) -> str:
    """Return the token of an `Authorization` header (RFC 6750 section 2.1).

    Raises Unauthorized.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("Authorization must be: Bearer <token>")
    return token.strip()


def handshake_token(
    headers: Mapping[str, str], subprotocols: Sequence[str], query: Mapping[str, str]
) -> str:
    """Return the token of a WebSocket handshake.

    Looks in the `Authorization` header, then in the subprotocols, then in the query. `headers` has
    lower-case names.

    Raises Unauthorized.
    """
    if "authorization" in headers:
        return bearer_token(headers["authorization"])
    for subprotocol in subprotocols:
        if subprotocol.startswith(BEARER_SUBPROTOCOL_PREFIX):
            return subprotocol.removeprefix(BEARER_SUBPROTOCOL_PREFIX)
    if query.get("token"):
        return query["token"]
    raise Unauthorized("the request has no token")
