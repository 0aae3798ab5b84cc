"""Origins, and the parsing of responses."""

import pytest

from chalicelib.delivery.http_connection import HttpConnection, Origin


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "secure"),
    [
        ("https://abc.execute-api.eu-west-1.amazonaws.com/prod", None, 443, True),
        ("https://ws.example.com:8443", "ws.example.com", 8443, True),
        ("http://127.0.0.1/prod", "127.0.0.1", 80, False),
        ("http://[::1]:3000/prod", "::1", 3000, False),
    ],
)
def test_an_origin_is_the_scheme_host_and_port_of_an_endpoint(
    endpoint: str, host: str | None, port: int, secure: bool
) -> None:
    origin = Origin(endpoint)
    assert origin.host == (host or endpoint.split("/")[2])
    assert (origin.port, origin.secure) == (port, secure)


def connection(received: bytes = b"") -> HttpConnection[str]:
    one = HttpConnection(Origin("http://127.0.0.1"), "task", b"", 0.0)
    one.received = received
    return one


@pytest.mark.parametrize(
    ("received", "whole"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nbody", True),
        (b"", False),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nfour", False),
    ],
)
def test_only_a_response_without_a_length_ends_with_the_stream(
    received: bytes, whole: bool
) -> None:
    assert connection(received).ends_with_stream() is whole


@pytest.mark.parametrize(
    ("header", "error_type"),
    [
        (b"x-amzn-ErrorType: GoneException", "GoneException"),
        (b"X-AMZN-ERRORTYPE:GoneException:http://x", "GoneException"),
        (b"x-other: GoneException", ""),
    ],
)
def test_the_error_type_is_the_name_in_the_header(header: bytes, error_type: str) -> None:
    received = b"HTTP/1.1 410 Gone\r\n" + header + b"\r\n\r\n"
    assert connection(received).error_type() == error_type


def test_an_informational_response_completes_nothing() -> None:
    one = connection()
    one.parser.feed_data(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not one.response_complete
    one.parser.feed_data(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (one.response_complete, one.keep_alive) == (True, True)
