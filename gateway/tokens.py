"""Tokens signed with a shared secret, by default the checkout's."""

import time
from collections.abc import Mapping

import jwt

from gateway.configuration import ConfigurationError

DEFAULT_SCOPE = "ws:connect messages:send messages:broadcast"
DEFAULT_LIFETIME_SECONDS = 24 * 60 * 60
SIGNER = jwt.PyJWT({"enforce_minimum_key_length": True})  # by default, PyJWT only warns


def token(
    variables: Mapping[str, str],
    user: str,
    scope: str = DEFAULT_SCOPE,
    *,
    seconds: int = DEFAULT_LIFETIME_SECONDS,
    **claims: object,
) -> str:
    """Return a signed token.

    Raises ConfigurationError if the secret is missing, or too short for any stage to accept.

    Args:
        variables: HERALD_JWT_SECRET, and the issuer and audience that the token gets if set.
        user: The token's `sub`.
        scope: Scopes, separated by spaces.
        seconds: How long the token is valid.
        claims: Further claims.
    """
    secret = variables.get("HERALD_JWT_SECRET", "").strip()
    if not secret:
        raise ConfigurationError(
            "HERALD_JWT_SECRET is empty: only your identity provider can make a token"
        )
    now = int(time.time())
    payload: dict[str, object] = {
        "sub": user,
        "scope": scope,
        "iat": now,
        "exp": now + seconds,
        **claims,
    }
    if variables.get("HERALD_JWT_ISSUER"):
        payload["iss"] = variables["HERALD_JWT_ISSUER"]
    if variables.get("HERALD_JWT_AUDIENCE"):
        payload["aud"] = variables["HERALD_JWT_AUDIENCE"]
    try:
        return SIGNER.encode(payload, secret, algorithm="HS256")
    except jwt.InvalidKeyError as error:
        raise ConfigurationError(f"HERALD_JWT_SECRET can't sign a token: {error}") from error
