"""Verify a token, and make a Principal of its claims.

PyJWT checks the signature, the times, the issuer and the audience of a JSON Web Token (RFC 7519).
This module adds the rules of RFC 8725, the best current practices, that PyJWT leaves to its user:
strict text and JSON, a type for the token and for each claim, and only the configured keys with
their own algorithms, whatever the header says.
"""

import logging
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from jwt import InvalidSignatureError, PyJWT, PyJWTError
from jwt.algorithms import OKPAlgorithm

from chalicelib import aws_limits
from chalicelib.auth.jwks import KeySource, key_sources
from chalicelib.auth.principal import Principal, parse_scopes
from chalicelib.errors import BadRequest, Unauthorized, Unavailable
from chalicelib.protocol.strict_json import encode, parse_json
from chalicelib.settings import Settings

MAX_TOKEN_BYTES = aws_limits.TOKEN_BYTES
MAX_CONTEXT_BYTES = aws_limits.CONTEXT_BYTES
MAX_NAME_CHARACTERS = 128
LATEST = 253_402_300_799  # the last second of the year 9999, in epoch seconds
TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""What a token may say that it is (RFC 8725 section 3.11): any JWT, or an access token (RFC 9068),
but none that was made for something else, such as a logout."""

COMPACT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
"""The compact serialization (RFC 7515 section 7.1), without the padding that PyJWT accepts."""

TIMES = ("exp", "nbf", "iat")

logger = logging.getLogger("herald.auth")


class TokenVerifier:
    """Verifies tokens by the keys, issuer and audience of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._sources: Sequence[KeySource] = key_sources(settings)
        self._leeway = settings.jwt_leeway_seconds
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._jwt = _StrictJWT(verify_audience=self._audience is not None)

    def verify(self, token: str) -> Principal:
        """The principal whom `token` names.

        Raises Unauthorized, saying no more than needed, and Unavailable when the keys can't be had.
        """
        if not self._sources:
            logger.error(
                "every token is refused: no key source is set"
                " (HERALD_JWT_SECRET, HERALD_JWT_SECRET_ARN or HERALD_JWKS_URL)"
            )
            raise Unauthorized("no token can be verified")
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthorized(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        try:
            return _principal(self._claims(token), self._leeway)
        except Unavailable as error:
            logger.error("no token can be verified: %s", error.detail)
            raise
        except (PyJWTError, BadRequest, ValueError) as error:
            logger.info("token refused: %s", error)
            raise Unauthorized("the token is not valid") from error

    def _claims(self, token: str) -> dict[str, Any]:
        """Return the claims, once one of the keys that may verify the token does.

        Raises ValueError, PyJWTError, BadRequest or Unavailable.
        """
        algorithm, kid = _header(token)
        for source in self._sources:
            if algorithm in source.algorithms:
                for key in source.candidates(algorithm, kid):
                    with suppress(InvalidSignatureError):
                        return self._jwt.decode(
                            token,
                            key,
                            algorithms=[algorithm],  # one that the source lists
                            issuer=self._issuer,
                            audience=self._audience,
                            leeway=self._leeway,
                        )
        raise ValueError("no key verifies the token")


class _StrictJWT(PyJWT):
    """PyJWT with the name `Ed25519` (RFC 9864), strict JSON and typed claims."""

    def __init__(self, *, verify_audience: bool) -> None:
        """Without `verify_audience`, accept a token for any audience."""
        super().__init__(
            {
                "require": ["sub", "exp"],
                "verify_aud": verify_audience,
                "enforce_minimum_key_length": True,  # or else PyJWT only warns
            }
        )
        self._jws.register_algorithm("Ed25519", OKPAlgorithm())

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        """Read the verified payload; PyJWT lets subclasses replace this step."""
        claims = _object(decoded["payload"])
        _check_types(claims)
        return claims


def _header(token: str) -> tuple[str, str | None]:
    """Return `alg` and `kid` of the token's header, which nothing verifies yet.

    Keys and addresses of keys in it are ignored (RFC 8725 section 3.10). Raises ValueError or
    BadRequest for a token that is malformed, for something else, or depends on an extension.
    """
    if not COMPACT.fullmatch(token):
        raise ValueError("the token is not three parts in base64url")
    header = _object(urlsafe_b64decode(token.partition(".")[0] + "=="))
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None):
        raise ValueError("alg or kid is not a string")
    if not header.keys().isdisjoint({"crit", "b64"}):  # RFC 7515 section 4.1.11
        raise ValueError("the token depends on an extension")
    if str(header.get("typ", "jwt")).lower() not in TYPES:
        raise ValueError("the token is for something else")
    return algorithm, kid


def _check_types(claims: Mapping[str, Any]) -> None:
    """Raise ValueError for a registered claim of a type that PyJWT converts or ignores."""
    for claim in TIMES:
        time = claims.get(claim, 0)
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise ValueError(f"{claim} is not a number")
    if not isinstance(claims.get("iss", ""), str):
        raise ValueError("iss is not a string")
    audience = claims.get("aud", "")
    audiences = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(one, str) for one in audiences):
        raise ValueError("aud is not a string or a list of strings")


def _object(text: bytes) -> dict[str, Any]:
    value = parse_json(text.decode())
    if not isinstance(value, dict):
        raise ValueError("a part of the token is not an object")
    return value


def _principal(claims: Mapping[str, Any], leeway: int) -> Principal:
    scope = claims.get("scope", "")
    groups = claims.get("groups", [])
    if not isinstance(scope, str):
        raise ValueError("scope is not a string")
    if not isinstance(groups, list):
        raise ValueError("groups is not a list")
    if claims["exp"] > LATEST:
        raise ValueError("exp is beyond the year 9999")
    tenant = claims.get("tenant")
    principal = Principal(
        user_id=_name("sub", claims["sub"]),
        expires_at=int(claims["exp"]),
        leeway=leeway,
        tenant=None if tenant is None else _name("tenant", tenant),
        scopes=parse_scopes(scope),
        groups=tuple(_name("groups", group) for group in groups),
    )
    if len(encode(principal.to_context())) > MAX_CONTEXT_BYTES:
        raise ValueError("the token says more than API Gateway hands on")
    return principal


def _name(claim: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_CHARACTERS:
        raise ValueError(f"{claim} is not a name of 1 to {MAX_NAME_CHARACTERS} characters")
    value.encode()  # a lone surrogate can't be stored: UnicodeEncodeError is a ValueError
    return value
