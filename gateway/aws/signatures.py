"""Signature Version 4: credentials of a gateway, and the check that they signed a request.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

The gateway checks each frame that a function sends, so it does this in a fifth of the SDK's time.
"""

import calendar
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

MAX_SKEW_SECONDS = 900
ALGORITHM = b"AWS4-HMAC-SHA256"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

_parameters = re.compile(
    ALGORITHM + rb" +Credential=([^/,\s]+)/(([^/,\s]+)/[^/,\s]+/([^/,\s]+)/aws4_request) *, *"
    rb"SignedHeaders=([^,\s]+) *, *"
).fullmatch
_timestamp = re.compile(rb"\d{8}T\d{6}Z").fullmatch
_encode_all = re.compile(rb"[^A-Za-z0-9/_.~-]").sub


class Credentials(NamedTuple):
    """An access key. `repr` leaves the secret out."""

    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"Credentials({self.access_key})"


def random_credentials() -> Credentials:
    """Return credentials that no other process can guess, in the form of AWS's."""
    access_key = "LOCAL" + "".join(secrets.choice(ALPHABET) for _ in range(15))
    return Credentials(access_key, secrets.token_urlsafe(30))


class SignatureError(Exception):
    """A request is not signed as it must be. `error_type` is AWS's, and so is most of the text."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class Claim(NamedTuple):
    """An `Authorization` header without its signature: the signer, the service, the headers."""

    access_key: bytes
    date: bytes
    service: bytes
    scope: bytes
    """The date, the region and the service, as they are signed."""
    signed_headers: list[bytes]


class Authorization(NamedTuple):
    """A request's claim, its signature and its headers."""

    claim: Claim
    signature: bytes
    timestamp: bytes
    headers: Mapping[bytes, bytes]


class SignatureVerifier:
    """Checks that requests are signed with one pair of credentials.

    Args:
        credentials: The credentials.
        service: The only service that a signature may be for; None accepts any.
        now: The clock, in epoch seconds.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        service: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._access_key = credentials.access_key.encode()
        self._secret_key = credentials.secret_key
        self._service = None if service is None else service.encode()
        self._now = now
        # A copy is made twice as fast as a new one.
        self._signing_hmac = lru_cache(maxsize=64)(self._new_hmac)

    def authorization(self, scope: Mapping[str, Any]) -> Authorization:
        """Check all but the signature, for which the body is needed, of an ASGI request.

        Raises SignatureError.
        """
        headers = _headers(scope["headers"])
        header = headers.get(b"authorization", b"")
        if not header:
            raise _missing(scope["query_string"])
        timestamp = headers.get(b"x-amz-date", b"")
        unsigned, _, signature = header.rpartition(b"Signature=")
        claim = _claim(unsigned)
        if claim is None or not timestamp:
            raise _incomplete(header, timestamp)
        if not hmac.compare_digest(claim.access_key, self._access_key):
            raise SignatureError(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        if self._service not in (None, claim.service):
            service = (self._service or b"").decode()
            raise _invalid(f"Credential should be scoped to correct service: '{service}'.")
        self._check_time(timestamp, claim.date)
        _check_signed_headers(claim.signed_headers, headers)
        return Authorization(claim, signature, timestamp, headers)

    def verify(self, authorization: Authorization, scope: Mapping[str, Any], body: bytes) -> None:
        """Check the signature of an ASGI request. Raises SignatureError."""
        claim, signature, timestamp, headers = authorization
        names = claim.signed_headers
        body_hash = hashlib.sha256(body).hexdigest().encode()
        canonical = [
            scope["method"].encode(),
            _canonical_path(scope["raw_path"]),
            _canonical_query(scope["query_string"]),
            *[name + b":" + _trimmed(headers.get(name, b"")) for name in names],
            b"",
            b";".join(names),
            body_hash,
        ]
        digest = hashlib.sha256(b"\n".join(canonical)).hexdigest().encode()
        expected = self._signing_hmac(claim.scope).copy()
        expected.update(b"\n".join((ALGORITHM, timestamp, claim.scope, digest)))
        if not hmac.compare_digest(expected.hexdigest().encode(), signature):
            if headers.get(b"x-amz-content-sha256", body_hash) != body_hash:
                raise _invalid("'x-amz-content-sha256' must be the SHA-256 of the body.")
            raise _invalid(
                "The request signature we calculated does not match the signature you provided."
                " Check your AWS Secret Access Key and signing method. Consult the service"
                " documentation for details."
            )

    def _check_time(self, timestamp: bytes, date: bytes) -> None:
        """Raise SignatureError unless the request was signed now, give or take 15 minutes."""
        signed_at = _epoch(timestamp)
        if signed_at is None:
            raise _invalid("Date must be in ISO-8601 'basic format'.")
        if date != timestamp[:8]:
            raise _invalid("Date in Credential scope does not match the date of the request.")
        now = self._now()
        if signed_at < now - MAX_SKEW_SECONDS:
            raise _invalid(
                f"Signature expired: {timestamp.decode()} is now earlier than"
                f" {_iso(now - MAX_SKEW_SECONDS)} ({_iso(now)} - {MAX_SKEW_SECONDS // 60} min.)"
            )
        if signed_at > now + MAX_SKEW_SECONDS:
            raise _invalid(
                f"Signature not yet current: {timestamp.decode()} is still later than"
                f" {_iso(now + MAX_SKEW_SECONDS)} ({_iso(now)} + {MAX_SKEW_SECONDS // 60} min.)"
            )

    def _new_hmac(self, scope: bytes) -> hmac.HMAC:
        """Return an HMAC with the signing key of a scope."""
        key = f"AWS4{self._secret_key}".encode()
        for part in scope.split(b"/"):
            key = hmac.digest(key, part, "sha256")
        return hmac.new(key, digestmod="sha256")


def _headers(raw: Collection[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by name, with the values of repeated ones joined."""
    headers = dict(raw)
    if len(headers) < len(raw):
        for name in headers:
            headers[name] = b",".join(_trimmed(value) for other, value in raw if other == name)
    return headers


def _trimmed(value: bytes) -> bytes:
    return b" ".join(value.split())


@lru_cache(maxsize=64)
def _claim(unsigned: bytes) -> Claim | None:
    """Return the claim of an `Authorization` header up to its signature; None if malformed."""
    match = _parameters(unsigned)
    if match is None:
        return None
    access_key, scope, date, service, signed_headers = match.groups()
    return Claim(access_key, date, service, scope, signed_headers.split(b";"))


def _check_signed_headers(signed: list[bytes], headers: Mapping[bytes, bytes]) -> None:
    """Raise SignatureError unless the headers that give a request its meaning are signed."""
    needed = [name for name in headers if name.startswith(b"x-amz-")]
    for name in (b"host", *needed):
        if name not in signed or name not in headers:
            text = name.decode("latin-1")
            raise _invalid(f"'{text}' must be a 'SignedHeader' in the AWS Authorization.")


def _canonical_path(raw: bytes) -> bytes:
    """Return the path without dot segments and empty ones, encoded once more."""
    if b"//" in raw or b"/." in raw:
        segments: list[bytes] = []
        for segment in raw.split(b"/"):
            if segment == b"..":
                del segments[-1:]
            elif segment not in (b"", b"."):
                segments.append(segment)
        end = b"/" if raw.endswith(b"/") and segments else b""
        raw = b"/" + b"/".join(segments) + end
    return _encode_all(lambda match: b"%%%02X" % ord(match[0]), raw)


def _canonical_query(raw: bytes) -> bytes:
    """Return the parameters as they were sent, sorted."""
    if not raw:
        return b""
    pairs = sorted(pair.partition(b"=")[::2] for pair in raw.split(b"&"))
    return b"&".join([b"%b=%b" % pair for pair in pairs])


@lru_cache(maxsize=64)
def _epoch(timestamp: bytes) -> int | None:
    """Return a timestamp such as 20261128T100000Z in epoch seconds; None if it is malformed."""
    try:
        if _timestamp(timestamp):
            return calendar.timegm(time.strptime(timestamp.decode(), "%Y%m%dT%H%M%SZ"))
    except ValueError:
        pass
    return None


def _iso(seconds: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def _invalid(message: str) -> SignatureError:
    return SignatureError("InvalidSignatureException", message)


def _missing(query: bytes) -> SignatureError:
    """Return what AWS says about a request without `Authorization`, presigned or not."""
    text = "Missing Authentication Token"
    if b"X-Amz-Signature=" in query:
        text += ". The local gateway accepts no presigned URLs."
    return SignatureError("MissingAuthenticationTokenException", text)


def _incomplete(header: bytes, timestamp: bytes) -> SignatureError:
    """Return what AWS says about another kind of `Authorization`, without repeating its value."""
    reasons = [
        f"Authorization header requires '{name}' parameter."
        for name in ("Credential", "Signature", "SignedHeaders")
        if f"{name}=".encode() not in header
    ]
    if not timestamp:
        reasons.append(
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
        )
    if not reasons:
        reasons.append(
            "Credential must have exactly 5 slash-delimited elements, e.g."
            " keyid/date/region/service/term."
        )
    return SignatureError("IncompleteSignatureException", " ".join(reasons))
