"""Fetching JSON from a real server. Slow servers and bad certificates are in `test_jwks.py`."""

from collections.abc import Iterator

import pytest

from chalicelib.auth.cached_fetch import FetchError
from chalicelib.auth.fetch_json import MAX_BYTES, fetch_json
from tests.support.key_server import KeyServer, key_server


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with key_server() as running:
        yield running


def test_json_of_the_largest_size_is_returned(server: KeyServer) -> None:
    text = "x" * (MAX_BYTES - 2)
    server.body = f'"{text}"'.encode()
    assert fetch_json(server.url) == text
    server.body += b" "
    with pytest.raises(FetchError, match="larger than"):
        fetch_json(server.url)


def test_a_redirect_is_not_followed(server: KeyServer) -> None:
    server.status, server.headers = 302, {"Location": server.url}
    with pytest.raises(FetchError, match="status 302"):
        fetch_json(server.url)
    assert server.requests == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"keys": NaN}', b"\xff"])
def test_anything_but_json_is_refused(server: KeyServer, body: bytes) -> None:
    server.body = body
    with pytest.raises(FetchError):
        fetch_json(server.url)


def test_a_server_that_cannot_be_reached_is_reported() -> None:
    with key_server() as stopped:
        url = stopped.url
    with pytest.raises(FetchError):
        fetch_json(url, seconds=1)
