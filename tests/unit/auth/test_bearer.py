"""The places where a request or a handshake may have its token."""

import pytest

from chalicelib.auth.bearer import bearer_token, handshake_token
from chalicelib.errors import Unauthorized


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER  abc "])
def test_the_scheme_of_an_authorization_header_is_case_insensitive(header: str) -> None:
    assert bearer_token(header) == "abc"


@pytest.mark.parametrize("header", ["", "abc", "Bearer", "Bearer ", "Basic abc", "Bearerabc"])
def test_an_authorization_header_without_a_bearer_token_is_refused(header: str) -> None:
    with pytest.raises(Unauthorized, match="Bearer <token>"):
        bearer_token(header)


def test_a_handshakes_token_is_in_the_header_or_a_subprotocol_or_the_query() -> None:
    query = {"token": "q"}
    subprotocols = ["herald.v1", "bearer.s"]
    assert handshake_token({"authorization": "bearer h"}, subprotocols, query) == "h"
    assert handshake_token({}, subprotocols, query) == "s"
    assert handshake_token({}, ["herald.v1"], query) == "q"


def test_an_unusable_authorization_header_is_refused_whatever_else_holds_a_token() -> None:
    for authorization in ("Basic x", "Bearer "):
        with pytest.raises(Unauthorized):
            handshake_token({"authorization": authorization}, ["bearer.s"], {"token": "q"})


def test_a_handshake_without_a_token_is_refused() -> None:
    for query in ({}, {"token": ""}):
        with pytest.raises(Unauthorized, match="the request has no token"):
            handshake_token({}, ["herald.v1"], query)
