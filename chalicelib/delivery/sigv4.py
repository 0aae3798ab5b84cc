"""Signature Version 4 for `/{stage}/@connections/{id}`, and nothing else.

The SDK signs any request in some 100 µs; a broadcast is one request many thousand times, of which
only the connection id differs. What doesn't differ is worked out once for a frame and a second.
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
MAX_HEADS = 256  # frames in one second; more are rare, and only cost a little


class RequestSigner:
    """Builds signed requests about connections of one endpoint.

    `credentials` is asked again for each second, since a role's change; `now` is the clock, in
    epoch seconds.
    """

    def __init__(
        self,
        endpoint: str,
        region: str,
        credentials: Callable[[], Credentials],
        now: Callable[[], float],
    ) -> None:
        parts = urlsplit(endpoint)
        self._host = parts.netloc
        # Encoded once as it is sent, and once more as it is signed: what `quote` leaves alone in
        # the stage's name stays as it is in both.
        self._path = f"{quote(parts.path)}/%40connections/".encode()
        self._signed_path = quote(self._path).encode()
        self._region = region
        self._credentials = credentials
        self._now = now
        self._second = 0
        self._key = b""
        self._key_of: tuple[str, str] = ("", "")
        self._heads: dict[tuple[str, bytes], _Head] = {}

    def request(self, method: str, connection_id: str, body: bytes, digest: str) -> bytes:
        """The whole HTTP request. `digest` is the body's SHA-256, in hex."""
        second = int(self._now())
        if second != self._second or len(self._heads) > MAX_HEADS:
            self._second = second
            self._heads.clear()
        head = self._heads.get((method, body))
        if head is None:
            head = self._heads[method, body] = self._head(second, method, body, digest)
        sent, signed = _encoded(connection_id)
        canonical = head.before_id + signed + head.after_id
        to_sign = head.to_sign + hashlib.sha256(canonical).hexdigest().encode()
        signature = hmac.digest(self._key, to_sign, "sha256").hex()
        return b"".join((head.line, sent, head.headers, signature.encode(), head.rest, body))

    def _head(self, second: int, method: str, body: bytes, digest: str) -> "_Head":
        credentials = self._credentials()
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        scope = f"{moment[:8]}/{self._region}/{SERVICE}/aws4_request"
        if self._key_of != (credentials.secret_key, moment[:8]):
            self._key_of = (credentials.secret_key, moment[:8])
            self._key = _signing_key(credentials.secret_key, scope)
        headers = {"host": self._host, "x-amz-date": moment}
        if credentials.token is not None:
            headers["x-amz-security-token"] = credentials.token
        names = ";".join(headers)
        canonical_headers = "".join(f"{name}:{value}\n" for name, value in headers.items())
        sent_headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        authorization = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature="
        )
        return _Head(
            before_id=method.encode() + b"\n" + self._signed_path,
            after_id=f"\n\n{canonical_headers}\n{names}\n{digest}".encode(),
            to_sign=f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n".encode(),
            line=method.encode() + b" " + self._path,
            headers=f" HTTP/1.1\r\n{sent_headers}authorization: {authorization}".encode(),
            rest=f"\r\ncontent-length: {len(body)}\r\n\r\n".encode(),
        )


@dataclass(frozen=True, slots=True)
class _Head:
    """What all requests of one frame in one second share, as signed and as sent."""

    before_id: bytes
    after_id: bytes
    to_sign: bytes
    line: bytes
    headers: bytes
    rest: bytes


_is_plain = re.compile(r"[A-Za-z0-9_-]*=*").fullmatch


def _encoded(connection_id: str) -> tuple[bytes, bytes]:
    """The id as it is sent, and as it is signed. In a real one only `=` has to be encoded."""
    if _is_plain(connection_id):
        plain = connection_id.encode()
        return plain.replace(b"=", b"%3D"), plain.replace(b"=", b"%253D")
    sent = quote(connection_id, safe="")
    if sent in (".", ".."):  # dot segments, which a signature's path has no more of
        sent = sent.replace(".", "%2E")
    return sent.encode(), quote(sent).encode()


def _signing_key(secret_key: str, scope: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
