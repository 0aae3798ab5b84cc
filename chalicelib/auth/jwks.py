"""The keys that verify tokens, and where they come from.

Each source has algorithms of its own, and a token is verified by the keys of its algorithm's
sources alone: what its header says never makes one kind of key serve as another (RFC 8725
section 3.1).
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Protocol
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import InvalidKeyError, PyJWK, PyJWTError, get_algorithm_by_name
from jwt.algorithms import AllowedPublicKeys
from jwt.utils import base64url_decode, base64url_encode

from chalicelib.auth.cached_fetch import CachedFetch, FetchError
from chalicelib.errors import BadRequest
from chalicelib.protocol.strict_json import parse_json
from chalicelib.settings import LOCAL_SECRET, MIN_SECRET_BYTES, Settings

HMAC = frozenset({"HS256"})
RSA = frozenset({"RS256"})
ECDSA = frozenset({"ES256"})
EDDSA = frozenset({"EdDSA", "Ed25519"})  # one algorithm: RFC 8037, and its name by RFC 9864
PUBLISHED = RSA | ECDSA | EDDSA

MIN_RSA_BITS = 2048  # RFC 7518 section 3.3
MAX_KEY_SET_BYTES = 256 * 1024
FETCH_SECONDS = 2.0  # for each packet, and for the body

Key = AllowedPublicKeys | bytes
"""A public key, or a secret."""


class KeySource(Protocol):
    """Where keys come from."""

    algorithms: frozenset[str]
    """What its keys may verify."""

    def candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        """The keys that may verify a token with this header, the likeliest first. Asking for
        another, when those so far did not verify it, may fetch. Raises Unavailable."""


def key_sources(settings: Settings) -> list[KeySource]:
    """The sources that the settings name."""
    sources: list[KeySource] = []
    if settings.jwt_secret is not None:
        sources.append(Secret(settings.jwt_secret))
    if settings.jwt_secret_arn is not None:
        sources.append(StoredSecret(settings.jwt_secret_arn))
    if settings.jwks_url is not None:
        sources.append(PublishedKeys(settings.jwks_url))
    return sources


class Secret:
    """A secret of the settings."""

    algorithms = HMAC

    def __init__(self, secret: str) -> None:
        self._key = _hmac_key(secret)

    def candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        yield self._key


class StoredSecret:
    """A secret in AWS Secrets Manager, all of which is the key. One that was rotated is found as
    soon as a token needs it."""

    algorithms = HMAC

    def __init__(self, arn: str) -> None:
        self._kept = CachedFetch("the secret of HERALD_JWT_SECRET_ARN", lambda: _stored_secret(arn))

    def candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        kept = self._kept.get()
        yield kept
        newer = self._kept.renew()
        if newer is not None and newer != kept:
            yield newer


class PublishedKeys:
    """The public keys of an identity provider: a JWK Set (RFC 7517 section 5) at a URL."""

    algorithms = PUBLISHED

    def __init__(self, url: str) -> None:
        self._kept = CachedFetch("the keys of HERALD_JWKS_URL", lambda: usable_keys(fetch(url)))

    def candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        found = _matching(self._kept.get(), algorithm, kid)
        if not found and kid is not None:
            found = _matching(self._kept.renew() or (), algorithm, kid)
        yield from found


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """One public key. `algorithms` are what it may verify, `kid` is its name."""

    key: Key
    algorithms: frozenset[str]
    kid: str | None


def _matching(keys: Iterable[PublishedKey], algorithm: str, kid: str | None) -> list[Key]:
    """The keys that a header means. One without `kid` means the only key of its algorithm."""
    fitting = [one for one in keys if algorithm in one.algorithms]
    if kid is None:
        return [one.key for one in fitting] if len(fitting) == 1 else []
    return [one.key for one in fitting if one.kid == kid]


def usable_keys(key_set: object) -> list[PublishedKey]:
    """The keys of a JWK Set that can verify tokens; what else it holds is passed over.

    Raises FetchError when there is none.
    """
    entries = key_set.get("keys") if isinstance(key_set, dict) else None
    if not isinstance(entries, list):
        raise FetchError("it is no JWK Set")
    keys = [key for entry in entries if (key := _usable_key(entry)) is not None]
    if not keys:
        raise FetchError("it holds no key for RS256, ES256 or EdDSA signatures")
    return keys


def _usable_key(entry: object) -> PublishedKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kid = entry.get("kid")
    try:
        if not isinstance(kid, str | None) or "verify" not in entry.get("key_ops", ["verify"]):
            return None
        key, algorithms = _public_key(entry)
        if "alg" in entry:  # the key is for one alone (RFC 8725 section 3.1)
            algorithms &= EDDSA if entry["alg"] in EDDSA else {entry["alg"]}
    except (PyJWTError, KeyError, TypeError, ValueError):
        return None
    return PublishedKey(key, algorithms, kid) if algorithms else None


def _public_key(entry: Mapping[str, Any]) -> tuple[AllowedPublicKeys, frozenset[str]]:
    """Return a key made of the public parts of `entry` alone, and what it can verify.

    Raises KeyError, TypeError, ValueError or PyJWTError for any other key.
    """
    match entry["kty"], entry.get("crv"):
        case "RSA", _:
            return _rsa_key(entry), RSA
        case "EC", "P-256":
            return PyJWK(_parts(entry, "x", "y")).key, ECDSA
        case "OKP", "Ed25519":
            return PyJWK(_parts(entry, "x")).key, EDDSA
    raise ValueError("no key for signatures that Herald verifies")  # least of all a symmetric one


def _rsa_key(entry: Mapping[str, Any]) -> RSAPublicKey:
    key: RSAPublicKey = PyJWK(_parts(entry, "n", "e")).key
    if key.key_size < MIN_RSA_BITS:
        raise ValueError("the key is too short")
    return key


def _parts(entry: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Return the JWK of the named parts and the key's type.

    PyJWT reads more than base64url, such as padding; here it raises ValueError.
    """
    for name in names:
        if base64url_encode(base64url_decode(entry[name])).decode() != entry[name]:
            raise ValueError(f"{name} is not base64url")
    return {name: entry[name] for name in ("kty", "crv", *names) if name in entry}


def fetch(url: str) -> object:
    """The JSON at `url`, over TLS that is verified, but for a loopback address. No redirect is
    followed: the keys are where the settings say. Raises FetchError."""
    parts = urlsplit(url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=FETCH_SECONDS)
    end = time.monotonic() + FETCH_SECONDS
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise FetchError(f"its status is {response.status}")
        body = b""
        while chunk := response.read1(65536):
            body += chunk
            if len(body) > MAX_KEY_SET_BYTES or time.monotonic() > end:
                raise FetchError(f"it is over {MAX_KEY_SET_BYTES} bytes, or {FETCH_SECONDS} s")
        return parse_json(body.decode())
    except (OSError, HTTPException, ValueError, BadRequest) as error:
        raise FetchError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def _hmac_key(secret: str | bytes) -> bytes:
    """Return the key for HS256. Raises ValueError for a public key or the text of a JWK."""
    try:
        key: bytes = get_algorithm_by_name("HS256").prepare_key(secret)
    except InvalidKeyError as error:
        raise ValueError(str(error)) from error
    return key


def _stored_secret(arn: str) -> bytes:
    """Fetch the current secret of `arn`, which may be its name in the functions' own region.

    Raises FetchError.
    """
    # The SDK takes longer to load than everything else that an authorizer does.
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import Session

    from chalicelib.runtime.aws import sdk_client

    try:
        region = arn.split(":")[3] if ":" in arn else None
        client = sdk_client(Session(), "secretsmanager", region)
        answer = client.get_secret_value(SecretId=arn)
    except (BotoCoreError, ClientError) as error:
        raise FetchError(str(error)) from error
    secret = answer.get("SecretString", "").encode() or answer.get("SecretBinary", b"")
    if len(secret) < MIN_SECRET_BYTES:
        raise FetchError(f"it has {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed")
    if secret.startswith(LOCAL_SECRET.encode()):
        raise FetchError(f"it begins with {LOCAL_SECRET}, as one that was made for a checkout")
    try:
        return _hmac_key(secret)
    except ValueError as error:  # a public key, which everybody knows
        raise FetchError(str(error)) from error
