"""Token in, Principal out.

A JSON Web Token (RFC 7519) is accepted as RFC 8725, the best current practices, has it: by the
configured keys and their algorithms alone, whatever its header says, and with every claim that is
looked at of the type that it must have.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from joserfc.errors import BadSignatureError, JoseError, UnsupportedAlgorithmError
from joserfc.jws import JWSRegistry, deserialize_compact
from joserfc.jwt import ClaimsOption, JWTClaimsRegistry
from joserfc.util import urlsafe_b64decode

from chalicelib.errors import BadRequest, Unauthorized, Unavailable
from chalicelib.json_text import encode, parse_json
from chalicelib.keys import KeySource, key_sources
from chalicelib.principal import Principal, parse_scopes
from chalicelib.settings import Settings

MAX_TOKEN_BYTES = 8192  # API Gateway passes at most 10,240 bytes of headers in all
MAX_CONTEXT_BYTES = 7000  # an authorizer's result has 8 KB, in which its policy needs room too
MAX_NAME_CHARACTERS = 128
LATEST = 253_402_300_799  # the last second of the year 9999, in epoch seconds
TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""What a token may say that it is (RFC 8725 section 3.11): any JWT, or an access token (RFC 9068),
but none that was made for something else, such as a logout."""

logger = logging.getLogger("herald.auth")


class TokenVerifier:
    """Verifies tokens by the keys, issuer and audience of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._sources: Sequence[KeySource] = key_sources(settings)
        self._leeway = settings.jwt_leeway_seconds
        options: dict[str, ClaimsOption] = {"sub": {"essential": True}, "exp": {"essential": True}}
        for claim, value in (("iss", settings.jwt_issuer), ("aud", settings.jwt_audience)):
            if value is not None:
                options[claim] = {"essential": True, "value": value}
        self._claims = JWTClaimsRegistry(None, self._leeway, **options)

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
            claims = _object(self._payload(token))
            self._claims.validate(claims)
            return _principal(claims, self._leeway)
        except Unavailable as error:
            logger.error("no token can be verified: %s", error.detail)
            raise
        except (JoseError, BadRequest, ValueError) as error:
            logger.info("token refused: %s", error)
            raise Unauthorized("the token is not valid") from error

    def _payload(self, token: str) -> bytes:
        """What is signed, if one of the keys that may verify it does. Raises ValueError, JoseError
        or BadRequest."""
        header = _object(urlsafe_b64decode(token.partition(".")[0].encode()))
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise ValueError("alg or kid is not a string")
        if not header.keys().isdisjoint({"crit", "b64"}):  # RFC 7515 section 4.1.11
            raise ValueError("the token depends on an extension")
        if str(header.get("typ", "jwt")).lower() not in TYPES:
            raise ValueError("the token is for something else")
        registry = _Registry(algorithm)
        for source in self._sources:
            if algorithm in source.algorithms:
                for key in source.candidates(algorithm, kid):
                    with suppress(BadSignatureError):
                        return deserialize_compact(token, key, registry=registry).payload
        raise ValueError("no key verifies the token")


class _Registry(JWSRegistry):
    """One algorithm. What a header says besides is not looked at: keys in it, and addresses of
    keys, least of all (RFC 8725 section 3.10)."""

    max_header_length = max_payload_length = max_signature_length = MAX_TOKEN_BYTES

    def __init__(self, algorithm: str) -> None:
        super().__init__(algorithms=[algorithm], strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        """As the library has it, but for its warning of EdDSA's name, which providers use."""
        if not self.allowed or name not in self.allowed:
            raise UnsupportedAlgorithmError
        return self.algorithms[name]


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
