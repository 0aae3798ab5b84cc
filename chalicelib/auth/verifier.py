"""Verify a token, and turn its claims into a Principal.

PyJWT checks the signature, the times, the issuer and the audience of a JSON Web Token (RFC 7519).
This module adds those best current practices of RFC 8725 that PyJWT leaves to its users: strict
text and JSON, types of the token and of its claims, and only the configured keys, each with its
own algorithms, whatever the header says.
"""

import logging
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from jwt import InvalidSignatureError, PyJWT, PyJWTError
from jwt.algorithms import OKPAlgorithm

from chalicelib import aws_limits
from chalicelib.auth.jwks import Key, KeySource, key_sources
from chalicelib.auth.principal import Principal, parse_scopes
from chalicelib.errors import BadRequest, Unauthorized, Unavailable
from chalicelib.protocol.names import NAME_LIMITS, is_name
from chalicelib.protocol.strict_json import encode, parse_json
from chalicelib.runtime.logs import RefusalLog
from chalicelib.settings import Settings

MAX_TOKEN_BYTES = aws_limits.TOKEN_BYTES
MAX_CONTEXT_BYTES = aws_limits.CONTEXT_BYTES
MAX_EXPIRY = 253_402_300_799  # the last second of the year 9999, in epoch seconds
TOKEN_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""The accepted values of `typ` (RFC 8725 section 3.11): any JWT, or an access token (RFC 9068).
Tokens with another purpose, such as logout tokens, are refused."""

COMPACT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
"""A token in compact serialization (RFC 7515 section 7.1). PyJWT would also accept padding."""

TIME_CLAIMS = ("exp", "nbf", "iat")

logger = logging.getLogger("herald.auth")
refusals = RefusalLog(logger)


class TokenVerifier:
    """Verifies tokens with the keys, issuer and audience of the settings."""

    def __init__(self, settings: Settings, sources: Sequence[KeySource] | None = None) -> None:
        """Verify with the keys of `sources`, by default those of the settings."""
        self._sources = key_sources(settings) if sources is None else sources
        self._leeway = settings.jwt_leeway_seconds
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._jwt = _StrictJWT(verify_audience=self._audience is not None)

    def verify(self, token: str) -> Principal:
        """Return the principal of `token`.

        Raises Unauthorized, which doesn't tell a client why (the log does), and Unavailable if
        the keys can't be fetched.
        """
        if not self._sources:
            logger.error(
                "every token is refused because no key source is set"
                " (HERALD_JWT_SECRET, HERALD_JWT_SECRET_ARN or HERALD_JWKS_URL)"
            )
            raise Unauthorized("the token can't be verified")
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthorized(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        try:
            return _principal_of(self._verified_claims(token), self._leeway)
        except Unavailable as error:
            logger.error("tokens can't be verified: %s", error.detail)
            raise
        except (PyJWTError, BadRequest, ValueError) as error:
            refusals.add("token", Unauthorized(str(error)))
            raise Unauthorized("the token is not valid") from error

    def _verified_claims(self, token: str) -> dict[str, Any]:
        """Return the claims of a token that one of the keys verifies.

        Raises ValueError, PyJWTError, BadRequest or Unavailable.
        """
        algorithm, kid = _parse_header(token)
        for key in self._candidates(algorithm, kid):
            with suppress(InvalidSignatureError):
                return self._jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],  # one that the key's source lists
                    issuer=self._issuer,
                    audience=self._audience,
                    leeway=self._leeway,
                )
        raise ValueError("no key verifies the token")

    def _candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        """Yield the keys of the sources that list `algorithm`."""
        for source in self._sources:
            if algorithm in source.algorithms:
                yield from source.candidates(algorithm, kid)


class _StrictJWT(PyJWT):
    """PyJWT with the algorithm name `Ed25519` (RFC 9864), strict JSON and typed claims."""

    def __init__(self, *, verify_audience: bool) -> None:
        """Accept tokens for any audience unless `verify_audience`."""
        super().__init__(
            {
                "require": ["sub", "exp"],
                "verify_aud": verify_audience,
                "enforce_minimum_key_length": True,  # by default PyJWT only warns
            }
        )
        self._jws.register_algorithm("Ed25519", OKPAlgorithm())

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        """Parse the payload strictly. PyJWT lets subclasses replace this step."""
        claims = _parse_object(decoded["payload"])
        _check_types(claims)
        return claims


def _parse_header(token: str) -> tuple[str, str | None]:
    """Return `alg` and `kid` of the token's header, which isn't verified yet.

    Ignores keys, and addresses of keys, in the header (RFC 8725 section 3.10).

    Raises ValueError or BadRequest for a token that is malformed, has another purpose, or needs
    an extension.
    """
    if not COMPACT.fullmatch(token):
        raise ValueError("the token is not three parts in base64url")
    header = _parse_object(urlsafe_b64decode(token.partition(".")[0] + "=="))
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None):
        raise ValueError("alg or kid is not a string")
    if not header.keys().isdisjoint({"crit", "b64"}):  # RFC 7515 section 4.1.11
        raise ValueError("the token needs an extension")
    if str(header.get("typ", "jwt")).lower() not in TOKEN_TYPES:
        raise ValueError("the token has another purpose")
    return algorithm, kid


def _check_types(claims: Mapping[str, Any]) -> None:
    """Raise ValueError for a claim whose wrong type PyJWT would convert or ignore."""
    for claim in TIME_CLAIMS:
        time = claims.get(claim, 0)
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise ValueError(f"{claim} is not a number")
    if not isinstance(claims.get("iss", ""), str):
        raise ValueError("iss is not a string")
    audience = claims.get("aud", "")
    audiences = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(one, str) for one in audiences):
        raise ValueError("aud is not a string or a list of strings")


def _parse_object(text: bytes) -> dict[str, Any]:
    value = parse_json(text.decode())
    if not isinstance(value, dict):
        raise ValueError("a part of the token is not an object")
    return value


def _principal_of(claims: Mapping[str, Any], leeway: int) -> Principal:
    """Return the principal of verified claims. Raises ValueError for a wrong one."""
    scope = claims.get("scope", "")
    groups = claims.get("groups", [])
    if not isinstance(scope, str):
        raise ValueError("scope is not a string")
    if not isinstance(groups, list):
        raise ValueError("groups is not a list")
    if claims["exp"] > MAX_EXPIRY:
        raise ValueError("exp is beyond the year 9999")
    tenant = claims.get("tenant")
    principal = Principal(
        user_id=_checked_name("sub", claims["sub"]),
        expires_at=int(claims["exp"]),
        leeway=leeway,
        tenant=None if tenant is None else _checked_name("tenant", tenant),
        scopes=parse_scopes(scope),
        groups=tuple(_checked_name("groups", group) for group in groups),
    )
    if len(encode(principal.to_context())) > MAX_CONTEXT_BYTES:
        raise ValueError("the claims exceed the size of an authorizer's context")
    return principal


def _checked_name(claim: str, value: object) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise ValueError(f"{claim} is not a name of {NAME_LIMITS}")
    value.encode()  # raises UnicodeEncodeError, a ValueError: a lone surrogate can't be stored
    return value
