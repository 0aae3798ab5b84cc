"""The media type, the JSON and the `Idempotency-Key` of a request."""

from typing import Any

import pytest

from chalicelib.errors import BadRequest, UnsupportedMediaType
from chalicelib.protocol.http_request import idempotency_key, json_body

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON ; charset=utf-8"])
@pytest.mark.parametrize("body", ['{"é": 1}', '{"é": 1}'.encode()])
def test_a_json_body_is_parsed(media_type: str, body: Any) -> None:
    assert json_body({"content-type": media_type}, body) == {"é": 1}


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/problem+json"])
def test_another_media_type_is_refused(media_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="must be application/json"):
        json_body({"content-type": media_type}, "{}")


def test_a_request_without_a_media_type_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType):
        json_body({}, "{}")


def test_a_body_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(BadRequest, match="not JSON: the body is not UTF-8"):
        json_body(JSON, b"\xff")


@pytest.mark.parametrize("key", ["k", "k" * 255])
def test_an_idempotency_key_has_up_to_255_characters(key: str) -> None:
    assert idempotency_key({"idempotency-key": key}) == key


def test_an_idempotency_key_is_optional() -> None:
    assert idempotency_key({}) is None


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_idempotency_key_of_another_length_is_refused(key: str) -> None:
    with pytest.raises(BadRequest, match=r"^Idempotency-Key must have 1 to 255 characters$"):
        idempotency_key({"idempotency-key": key})
