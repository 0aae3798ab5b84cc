"""HTTP requests with a body: their JSON and their `Idempotency-Key`.

No I/O here. Header names are in lower case.
"""

from collections.abc import Mapping

from chalicelib.errors import BadRequest, UnsupportedMediaType
from chalicelib.protocol.strict_json import parse_json

MAX_KEY_CHARACTERS = 255


def json_body(headers: Mapping[str, str], body: str | bytes) -> object:
    """Return the JSON value of a request. Raises UnsupportedMediaType or BadRequest."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the Content-Type must be application/json")
    try:
        text = body if isinstance(body, str) else body.decode()
    except UnicodeDecodeError:
        raise BadRequest("not JSON: the body is not UTF-8") from None
    return parse_json(text)


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """Return a request's `Idempotency-Key`, or None without one. Raises BadRequest."""
    key = headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise BadRequest(f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} characters")
    return key
