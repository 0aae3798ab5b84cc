"""Tokens made by joserfc or by hand, so that they don't depend on the library under test."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

from joserfc.jwk import OctKey

from tests.support import key_server

SECRET = "the-key-of-these-tests-has-32-bytes-and-more"
CLAIMS = {"sub": "alice", "exp": 9_999_999_999}


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: Any = None, **claims: Any) -> str:
    """Sign a token of alice, valid for a minute, with joserfc."""
    payload = {"sub": "alice", "exp": int(time.time()) + 60, **claims}
    key = OctKey.import_key(key) if isinstance(key, str) else key
    return key_server.signed(key, algorithm, headers or {}, payload)


def encoded(part: Any) -> str:
    """Encode bytes, or the JSON of any other value, as base64url."""
    text = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def by_hand(header: Any, payload: Any, key: bytes = SECRET.encode()) -> str:
    """Sign with HS256, whatever the header says."""
    signing_input = f"{encoded(header)}.{encoded(payload)}"
    signature = hmac.new(key, signing_input.encode(), hashlib.sha256).digest()
    return f"{signing_input}.{encoded(signature)}"
