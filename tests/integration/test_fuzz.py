"""Fuzz tests: each route and the WebSocket give a documented answer to any input.

The inputs combine parts that Herald understands, since nearly valid requests find more bugs than
random bytes do.
"""

import json
import os
import socket as sockets
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from tests.support.clients import (
    EVERY_SCOPE,
    LEAVE,
    RECEIVE_SECONDS,
    Client,
    Socket,
    configured,
    served,
    token,
)

EXPLORE = os.environ.get("FUZZ_EXAMPLES")
"""The number of examples for each test, new ones in each run; by default, the same few."""

FEW = settings(
    max_examples=int(EXPLORE or 60),
    derandomize=not EXPLORE,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def herald() -> Iterator[Client]:
    """A gateway without practical rate limits."""
    names = ("MESSAGE_RATE", "MESSAGE_BURST", "READ_RATE", "READ_BURST")
    environment = {f"HERALD_{name}": "100000" for name in names}
    with (
        served(configured(HERALD_CONNECT_RATE="100000", **environment)) as running,
        closing(Client(running)) as client,
    ):
        yield client


@pytest.fixture
def open_socket(herald: Client) -> Iterator[Socket]:
    socket = herald.connect("fuzzing", tenant="fuzzed", groups=["*"])
    yield socket
    socket.connection.close()


names = st.sampled_from(
    ["alice", "bob", "", "*", "..", "%", "a" * 128, "a" * 129, "ü", "\u0000", "/"]
)
text = names | st.text(max_size=20)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values: Any = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
lists = st.lists(text, max_size=3) | values
audiences = st.fixed_dictionaries(
    {},
    optional={
        "users": lists,
        "groups": lists,
        "connections": lists,
        "all": st.just(True) | values,
        "exceptUsers": lists,
        "exceptConnections": lists,
    },
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "to": audiences | values,
        "type": text | values,
        "data": values,
        "encrypt": st.booleans() | values,
        "store": st.booleans() | values,
        "unknown": values,
    },
)
bodies = messages | st.fixed_dictionaries({"messages": st.lists(messages, max_size=3)}) | values

STATUSES = {200, 202, 204, 400, 401, 403, 404, 409, 413, 415, 422, 429}


def assert_documented(answer: Any) -> None:
    assert answer.status_code in STATUSES, answer.text
    assert answer.status_code == 204 or answer.json() is not None


@FEW
@given(
    body=bodies.map(json.dumps).map(str.encode) | st.binary(max_size=100),
    media_type=st.sampled_from(
        ["application/json", "application/json; charset=utf-8", "text/plain", "", "a/b;c=d", "é"]
    ),
    key=st.none() | st.sampled_from(["", "k", "k" * 255, "k" * 256, "é"]),
    scope=st.sampled_from([EVERY_SCOPE, "messages:send", ""]),
)
def test_any_post_gets_a_documented_answer(
    herald: Client, body: bytes, media_type: str, key: str | None, scope: str
) -> None:
    user = "fuzzing"
    headers = {
        b"Authorization": f"Bearer {token(user, scope, tenant='fuzzed')}".encode(),
        b"Content-Type": media_type.encode(),
        **({} if key is None else {b"Idempotency-Key": key.encode()}),
    }
    assert_documented(herald.http.post("/messages", content=body, headers=headers))


@FEW
@given(
    method=st.sampled_from(["GET", "DELETE", "POST", "PUT", "PATCH", "HEAD"]),
    route=st.sampled_from(
        [
            "/messages/{}",
            "/users/{}",
            "/users/{}/connections",
            "/users/fuzzing/connections/{}",
            "/keys{}",
            "/health{}",
            "/{}",
        ]
    ),
    name=text,
    query=st.none() | text,
)
def test_any_request_gets_a_documented_status(
    herald: Client, method: str, route: str, name: str, query: str | None
) -> None:
    headers = {"Authorization": f"Bearer {token('fuzzing', tenant='fuzzed')}"}
    path = route.format(quote(name, safe="")) + ("" if query is None else f"?{quote(query)}")
    answer = herald.http.request(method, path, headers=headers)
    assert answer.status_code in STATUSES, (path, answer.text)


@FEW
@given(request=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_octets_on_the_port_cause_no_500_and_no_outage(herald: Client, request: bytes) -> None:
    """Input that isn't HTTP ends the connection, and other requests still succeed."""
    parts = urlsplit(herald.running.http)
    with sockets.create_connection(
        (parts.hostname, parts.port), timeout=RECEIVE_SECONDS
    ) as connection:
        connection.sendall(request + b"\r\n\r\n")
        connection.shutdown(sockets.SHUT_WR)
        answer = b""
        while data := _receive(connection):
            answer += data
    assert b" 500 " not in answer.partition(b"\r\n")[0]
    assert herald.http.get("/health").status_code == 200


def _receive(connection: sockets.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


@FEW
@given(
    authorization=st.none() | st.text(max_size=40),
    protocols=st.none() | st.lists(st.sampled_from(["herald.v1", "bearer.", "bearer.x", "other"])),
    query=st.none() | st.text(max_size=40),
)
def test_any_handshake_without_a_valid_token_is_refused(
    herald: Client, authorization: str | None, protocols: list[Any] | None, query: str | None
) -> None:
    headers = {}
    if authorization is not None:
        headers["Authorization"] = quote(authorization, safe=" -._~+/=:,;")
    where = "" if query is None else f"?token={quote(query)}"
    with pytest.raises(InvalidStatus) as refused:
        herald.open(where, headers=headers, subprotocols=protocols or None)
    assert refused.value.response.status_code in (400, 401, 403)


actions = (
    st.sampled_from(["ping", "heartbeat", "send", "join", "leave", "resume", "refresh", ""]) | text
)
frames = st.fixed_dictionaries(
    {},
    optional={
        "action": actions | values,
        "ref": text | values,
        "group": text | values,
        "after": st.sampled_from(["0" * 26, "Z" * 26, "7" + "Z" * 25]) | text | values,
        "token": st.just(token("fuzzing", tenant="fuzzed")) | text | values,
        "to": audiences | values,
        "type": text | values,
        "data": values,
        "encrypt": values,
        "store": values,
        "unknown": values,
    },
)


@FEW
@given(frame=frames.map(json.dumps) | values.map(json.dumps) | st.text(max_size=50))
def test_any_frame_gets_a_documented_answer_and_the_socket_stays_open(
    herald: Client, open_socket: Socket, frame: str
) -> None:
    open_socket.connection.send(frame)
    answer = open_socket.receive()
    while answer["type"] in ("messages", "notice"):
        answer = open_socket.receive()
    assert answer["type"] in (
        "ack", "error", "heartbeat", "joined", "left", "pong", "refreshed", "resumed",
    ), answer  # fmt: skip
    assert answer.get("code") != "internal"
    open_socket.connection.send(json.dumps(LEAVE))  # accepted: fewer than 100 refused in a row
    while open_socket.receive()["type"] != "left":
        pass
