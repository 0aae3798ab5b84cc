"""Signature Version 4 for requests to `/{stage}/@connections/{id}`.

The SDK needs about 100 µs to sign a request. A broadcast sends the same request thousands of times,
with another connection id each time, so everything else is computed once per frame and second.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from chalicelib.runtime.aws import Credentials

SERVICE = "execute-api"
MAX_TEMPLATES = 256  # frames in one second; more are rare, and only cost some time

_endpoint_region = re.compile(r"\.execute-api\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?$").search


class RequestSigner:
    """Builds signed requests about connections of one endpoint."""

    def __init__(
        self,
        endpoint: str,
        *,
        region: str,
        credentials: Callable[[], Credentials],
        now: Callable[[], float],
    ) -> None:
        """Sign for `endpoint`.

        Args:
            credentials: Called once a second, since the credentials of a role change.
            now: The clock, in epoch seconds.
        """
        parts = urlsplit(endpoint)
        self._host = parts.netloc
        # The path is encoded once for sending and once more for signing. Neither changes the
        # characters of a stage's name that `quote` leaves alone.
        self._path = f"{quote(parts.path)}/%40connections/".encode()
        self._signed_path = quote(self._path).encode()
        self._region = region
        self._credentials = credentials
        self._now = now
        self._second = 0
        self._key = b""
        self._key_of: tuple[str, str] = ("", "")
        self._templates: dict[tuple[str, bytes], _Template] = {}

    def request(self, method: str, connection_id: str, body: bytes, digest: str) -> bytes:
        """Return a whole HTTP request. `digest` is the SHA-256 of the body in hex.

        Raises what `credentials` raises.
        """
        second = int(self._now())
        if second != self._second or len(self._templates) > MAX_TEMPLATES:
            self._second = second
            self._templates.clear()
        template = self._templates.get((method, body))
        if template is None:
            template = self._template(second, method, body, digest)
            self._templates[method, body] = template
        sent, signed = _encode_id(connection_id)
        canonical = template.before_id + signed + template.after_id
        to_sign = template.to_sign + hashlib.sha256(canonical).hexdigest().encode()
        signature = hmac.digest(self._key, to_sign, "sha256").hex()
        return b"".join(
            (template.line, sent, template.headers, signature.encode(), template.rest, body)
        )

    def _template(self, second: int, method: str, body: bytes, digest: str) -> "_Template":
        credentials = self._credentials()
        timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        date = timestamp[:8]
        scope = f"{date}/{self._region}/{SERVICE}/aws4_request"
        if self._key_of != (credentials.secret_key, date):
            self._key_of = (credentials.secret_key, date)
            self._key = _signing_key(credentials.secret_key, scope)
        headers = {"host": self._host, "x-amz-date": timestamp}
        if credentials.token is not None:
            headers["x-amz-security-token"] = credentials.token
        names = ";".join(headers)
        canonical_headers = "".join(f"{name}:{value}\n" for name, value in headers.items())
        sent_headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        authorization = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature="
        )
        return _Template(
            before_id=method.encode() + b"\n" + self._signed_path,
            after_id=f"\n\n{canonical_headers}\n{names}\n{digest}".encode(),
            to_sign=f"AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n".encode(),
            line=method.encode() + b" " + self._path,
            headers=f" HTTP/1.1\r\n{sent_headers}authorization: {authorization}".encode(),
            rest=f"\r\ncontent-length: {len(body)}\r\n\r\n".encode(),
        )


class SignerFactory:
    """Creates a signer for each endpoint."""

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        *,
        region: str,
        now: Callable[[], float],
    ) -> None:
        """Use `region` when a host name contains no region; see `RequestSigner` for the rest."""
        self._credentials = credentials
        self._region = region
        self._now = now

    def signer(self, endpoint: str) -> RequestSigner:
        """Return a signer for requests to `endpoint`."""
        found = _endpoint_region(urlsplit(endpoint).hostname or "")
        return RequestSigner(
            endpoint,
            region=found[1] if found else self._region,
            credentials=self._credentials,
            now=self._now,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """The parts that all requests of one frame in one second share, as signed and as sent."""

    before_id: bytes
    after_id: bytes
    to_sign: bytes
    line: bytes
    headers: bytes
    rest: bytes


_is_plain = re.compile(r"[A-Za-z0-9_-]*=*").fullmatch


def _encode_id(connection_id: str) -> tuple[bytes, bytes]:
    """Return a connection id as it is sent and as it is signed.

    In an id of API Gateway only `=` has to be encoded.
    """
    if _is_plain(connection_id):
        plain = connection_id.encode()
        return plain.replace(b"=", b"%3D"), plain.replace(b"=", b"%253D")
    sent = quote(connection_id, safe="")
    if sent in (".", ".."):  # these would be dot segments, which a signed path may not contain
        sent = sent.replace(".", "%2E")
    return sent.encode(), quote(sent).encode()


def _signing_key(secret_key: str, scope: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
