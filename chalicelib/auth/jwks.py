"""The keys that verify tokens, and their sources.

Each source lists its algorithms, and only the sources that list a token's algorithm may verify it.
So a token's header can't make one kind of key serve as another (RFC 8725 section 3.1).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import InvalidKeyError, PyJWK, PyJWTError, get_algorithm_by_name
from jwt.algorithms import AllowedPublicKeys
from jwt.utils import base64url_decode, base64url_encode

from chalicelib.auth.cached_fetch import DEFAULT_WAITS, CachedFetch, FetchError, FetchWaits
from chalicelib.auth.fetch_json import FETCH_SECONDS, fetch_json
from chalicelib.auth.secrets_manager import read_secret
from chalicelib.settings import LOCAL_SECRET, MIN_SECRET_BYTES, Settings

HMAC = frozenset({"HS256"})
RSA = frozenset({"RS256"})
ECDSA = frozenset({"ES256"})
EDDSA = frozenset({"EdDSA", "Ed25519"})  # one algorithm, named by RFC 8037 and by RFC 9864
PUBLISHED = RSA | ECDSA | EDDSA

MIN_RSA_BITS = 2048  # RFC 7518 section 3.3

Key = AllowedPublicKeys | bytes
"""A public key, or the bytes of an HS256 secret."""


class KeySource(Protocol):
    """A source of keys."""

    algorithms: frozenset[str]
    """The algorithms that its keys may verify."""

    def candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        """Yield the keys that may verify a token with this header, the most likely one first.

        Ask for the next key only after the previous ones failed, since that may fetch.

        Raises Unavailable.
        """


def key_sources(settings: Settings) -> list[KeySource]:
    """Return the sources that the settings name."""
    sources: list[KeySource] = []
    if settings.jwt_secret is not None:
        sources.append(Secret(settings.jwt_secret))
    if settings.jwt_secret_arn is not None:
        sources.append(StoredSecret(settings.jwt_secret_arn))
    if settings.jwks_url is not None:
        sources.append(PublishedKeys(settings.jwks_url))
    return sources


class Secret:
    """A secret in the settings."""

    algorithms = HMAC

    def __init__(self, secret: str) -> None:
        self._key = _hmac_key(secret)

    def candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        yield self._key


class StoredSecret:
    """A secret in AWS Secrets Manager, whose whole value is the key.

    After a rotation the new secret is fetched as soon as a token needs it.
    """

    algorithms = HMAC

    def __init__(self, arn: str, *, waits: FetchWaits = DEFAULT_WAITS) -> None:
        self._cached = CachedFetch(
            "the secret of HERALD_JWT_SECRET_ARN", lambda: _fetch_secret(arn), waits=waits
        )

    def candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        cached = self._cached.get()
        yield cached
        current = self._cached.refresh()
        if current is not None and current != cached:
            yield current


class PublishedKeys:
    """The public keys of an identity provider: a JWK Set (RFC 7517 section 5) at a URL."""

    algorithms = PUBLISHED

    def __init__(self, url: str, *, fetch_seconds: float = FETCH_SECONDS) -> None:
        self._cached = CachedFetch(
            "the keys of HERALD_JWKS_URL", lambda: usable_keys(fetch_json(url, fetch_seconds))
        )

    def candidates(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        keys = _matching(self._cached.get(), algorithm, kid)
        if not keys and kid is not None:
            keys = _matching(self._cached.refresh() or (), algorithm, kid)
        yield from keys


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """A public key, the algorithms that it may verify, and its `kid`."""

    key: Key
    algorithms: frozenset[str]
    kid: str | None


def _matching(keys: Iterable[PublishedKey], algorithm: str, kid: str | None) -> list[Key]:
    """Return the keys that a token's header refers to.

    A header without `kid` refers to the only key for its algorithm, if there is exactly one.
    """
    suitable = [published for published in keys if algorithm in published.algorithms]
    if kid is None:
        return [published.key for published in suitable] if len(suitable) == 1 else []
    return [published.key for published in suitable if published.kid == kid]


def usable_keys(key_set: object) -> list[PublishedKey]:
    """Return the keys of a JWK Set that can verify tokens; anything else in it is ignored.

    Raises FetchError if it has no such key, or isn't a JWK Set.
    """
    entries = key_set.get("keys") if isinstance(key_set, dict) else None
    if not isinstance(entries, list):
        raise FetchError("the response is not a JWK Set")
    keys = [key for entry in entries if (key := _usable_key(entry)) is not None]
    if not keys:
        raise FetchError("the JWK Set has no key for RS256, ES256 or EdDSA signatures")
    return keys


def _usable_key(entry: object) -> PublishedKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kid = entry.get("kid")
    try:
        if not isinstance(kid, str | None) or "verify" not in entry.get("key_ops", ["verify"]):
            return None
        key, algorithms = _public_key(entry)
        if "alg" in entry:  # restricts the key to one algorithm (RFC 8725 section 3.1)
            algorithms &= EDDSA if entry["alg"] in EDDSA else {entry["alg"]}
    except (PyJWTError, KeyError, TypeError, ValueError):
        return None
    return PublishedKey(key, algorithms, kid) if algorithms else None


def _public_key(entry: Mapping[str, Any]) -> tuple[AllowedPublicKeys, frozenset[str]]:
    """Return the public key of a JWK, even of a private one, and the algorithms that it can verify.

    Raises KeyError, TypeError, ValueError or PyJWTError for a key of another kind.
    """
    match entry["kty"], entry.get("crv"):
        case "RSA", _:
            return _rsa_key(entry), RSA
        case "EC", "P-256":
            return PyJWK(_public_part(entry, "x", "y")).key, ECDSA
        case "OKP", "Ed25519":
            return PyJWK(_public_part(entry, "x")).key, EDDSA
    raise ValueError("not a public key of a supported kind")


def _rsa_key(entry: Mapping[str, Any]) -> RSAPublicKey:
    key: RSAPublicKey = PyJWK(_public_part(entry, "n", "e")).key
    if key.key_size < MIN_RSA_BITS:
        raise ValueError("the key is too short")
    return key


def _public_part(entry: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Return a JWK of only these parameters and the key's type.

    Raises ValueError for a parameter that isn't exactly base64url; PyJWT would accept padding.
    """
    for name in names:
        if base64url_encode(base64url_decode(entry[name])).decode() != entry[name]:
            raise ValueError(f"{name} is not base64url")
    return {name: entry[name] for name in ("kty", "crv", *names) if name in entry}


def _hmac_key(secret: str | bytes) -> bytes:
    """Return the key for HS256. Raises ValueError for a public key or the text of a JWK."""
    try:
        key: bytes = get_algorithm_by_name("HS256").prepare_key(secret)
    except InvalidKeyError as error:
        raise ValueError(str(error)) from error
    return key


def _fetch_secret(arn: str) -> bytes:
    """Return the key that a stored secret is. Raises FetchError."""
    secret = read_secret(arn)
    if len(secret) < MIN_SECRET_BYTES:
        raise FetchError(f"it has {len(secret)} bytes, but needs at least {MIN_SECRET_BYTES}")
    if secret.startswith(LOCAL_SECRET.encode()):
        raise FetchError(f"it begins with {LOCAL_SECRET}, so it was made for local use")
    try:
        return _hmac_key(secret)
    except ValueError as error:  # a public key, which anyone could sign with
        raise FetchError(str(error)) from error
