"""Token in, Principal out.

Only HS256 with the configured secret is accepted, whatever a token's header says (RFC 8725
section 3.1). Without a key every token is refused.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jwt

from chalicelib.errors import Unauthorized
from chalicelib.events import WebSocketEvent
from chalicelib.principal import Principal, Scope
from chalicelib.settings import Settings

MAX_TOKEN_BYTES = 8192  # API Gateway passes at most 10,240 bytes of headers in all
MAX_NAME_CHARACTERS = 128
BEARER_SUBPROTOCOL_PREFIX = "bearer."

logger = logging.getLogger("herald.auth")


class TokenVerifier:
    """Verifies tokens against the key, issuer and audience of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.jwt_secret
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._leeway = settings.jwt_leeway_seconds

    def verify(self, token: str) -> Principal:
        """The principal whom `token` names. Raises Unauthorized, saying no more than needed."""
        if self._secret is None:
            logger.error("every token is refused: no key source is set (HERALD_JWT_SECRET)")
            raise Unauthorized("no token can be verified")
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthorized(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={
                    "require": ["exp", "sub"],
                    # A token may name an audience where none is configured.
                    "verify_aud": self._audience is not None,
                },
            )
            return _principal(claims, self._leeway)
        # An `exp` of 1e400 overflows, and a payload of brackets exhausts the JSON parser's stack.
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            logger.info("token refused: %s", error)
            raise Unauthorized("the token is not valid") from error


def _principal(claims: Mapping[str, Any], leeway: int) -> Principal:
    scope = claims.get("scope", "")
    groups = claims.get("groups", [])
    if not isinstance(scope, str):
        raise ValueError("scope is not a string")
    if not isinstance(groups, list):
        raise ValueError("groups is not a list")
    tenant = claims.get("tenant")
    if not isinstance(claims["exp"], int | float):
        raise ValueError("exp is not a number")
    return Principal(
        user_id=_name("sub", claims["sub"]),
        expires_at=int(claims["exp"]),
        leeway=leeway,
        tenant=None if tenant is None else _name("tenant", tenant),
        scopes=frozenset(scope.split()),
        groups=tuple(_name("groups", group) for group in groups),
    )


def _name(claim: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_CHARACTERS:
        raise ValueError(f"{claim} is not a name of 1 to {MAX_NAME_CHARACTERS} characters")
    value.encode()  # a lone surrogate can't be stored: UnicodeEncodeError is a ValueError
    return value


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


def authenticate(event: WebSocketEvent, verifier: TokenVerifier) -> Principal:
    """Whom a handshake's token names. Raises Unauthorized, or Forbidden without `ws:connect`."""
    token = handshake_token(event.headers, event.subprotocols, event.query)
    principal = verifier.verify(token)
    principal.require(Scope.WS_CONNECT)
    return principal
