"""Tokens for local use, signed with the secret of the checkout or of the shell."""

import time
from collections.abc import Mapping

import jwt

from gateway.configuration import ConfigurationError

DEFAULT_SCOPE = "ws:connect messages:send messages:broadcast"
DEFAULT_LIFETIME_SECONDS = 24 * 60 * 60
SIGNER = jwt.PyJWT({"enforce_minimum_key_length": True})  # or else PyJWT only warns


def token(
    environment: Mapping[str, str],
    user: str,
    scope: str = DEFAULT_SCOPE,
    *,
    seconds: int = DEFAULT_LIFETIME_SECONDS,
    **claims: object,
) -> str:
    """A token for `user` with `scope` (space-separated) and other claims, valid for `seconds`.

    Raises ConfigurationError without a secret, or with one that no stage would accept.
    """
    secret = environment.get("HERALD_JWT_SECRET", "").strip()
    if not secret:
        raise ConfigurationError("HERALD_JWT_SECRET is empty: only its owner can make a token")
    now = int(time.time())
    payload: dict[str, object] = {
        "sub": user,
        "scope": scope,
        "iat": now,
        "exp": now + seconds,
        **claims,
    }
    if environment.get("HERALD_JWT_ISSUER"):
        payload["iss"] = environment["HERALD_JWT_ISSUER"]
    if environment.get("HERALD_JWT_AUDIENCE"):
        payload["aud"] = environment["HERALD_JWT_AUDIENCE"]
    try:
        return SIGNER.encode(payload, secret, algorithm="HS256")
    except jwt.InvalidKeyError as error:
        raise ConfigurationError(f"HERALD_JWT_SECRET can't sign a token: {error}") from error
