"""Clients in Node with the library ws."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import Client, token

LISTEN = Path(__file__).with_name("listen.mjs")
DECRYPT = Path(__file__).with_name("decrypt.mjs")


class Node:
    """Clients in one Node process. The events of all of them come in one sequence."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.process = subprocess.Popen(
            ["node", str(LISTEN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def open(self, query: str = "", **options: Any) -> list[Any]:
        """Open a WebSocket, and return the next event."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"url": self.url + query, **options}) + "\n")
        self.process.stdin.flush()
        return self.event()

    def event(self) -> list[Any]:
        """Wait for the next event: the client's number, the kind, and its text."""
        assert self.process.stdout is not None
        event: list[Any] = json.loads(self.process.stdout.readline())
        return event


@pytest.fixture
def node(herald: Client) -> Iterator[Node]:
    clients = Node(herald.running.websocket)
    yield clients
    clients.process.communicate(timeout=10)


def test_each_socket_receives_exactly_its_users_messages(node: Node, herald: Client) -> None:
    for number, user in enumerate(("node-bob", "node-bob", "node-carol")):
        assert node.open(f"?token={token(user)}") == [number, "open", ""]
    assert herald.report({"users": ["node-bob"]}, 1, "node-dave")["delivered"] == 2
    assert herald.report({"users": ["node-carol"]}, 2, "node-dave")["delivered"] == 1
    received = []
    for _ in range(3):
        number, kind, text = node.event()
        assert kind == "message"
        received += [(number, message["data"]) for message in json.loads(text)["messages"]]
    assert sorted(received) == [(0, 1), (1, 1), (2, 2)]


def test_a_refused_handshake_is_answered_by_a_status(node: Node) -> None:
    assert node.open() == [0, "refused", 401]
    assert node.open("?token=bad") == [1, "refused", 401]
    assert node.open(f"?token={token(scope='')}") == [2, "refused", 403]
    assert node.open(f"?token={token()}", subprotocols=["mqtt"]) == [3, "refused", 400]


def test_a_token_may_come_in_the_subprotocol(node: Node) -> None:
    subprotocols = ["herald.v1", f"bearer.{token()}"]
    assert node.open(subprotocols=subprotocols) == [0, "open", "herald.v1"]


def test_jose_and_webcrypto_decrypt_messages(
    herald_with: Callable[..., Client],
) -> None:
    master = {"keys": [{"kty": "oct", "kid": "new", "k": "bmV3" * 11}]}
    herald = herald_with(HERALD_ENCRYPTION_KEYS=json.dumps(master))
    socket = herald.connect("bob")
    data = {"text": "für Bob 🗝"}
    herald.post({"to": {"users": ["bob"]}, "data": data, "encrypt": True})
    [entry] = socket.receive()["messages"]
    keys = herald.http.get("/keys", headers={"Authorization": f"Bearer {token('bob')}"}).json()
    line = json.dumps({"jwe": entry["data"], **keys})
    printed = subprocess.run(
        ["node", str(DECRYPT)], input=line, capture_output=True, text=True, check=True
    ).stdout
    assert [json.loads(plaintext) for plaintext in json.loads(printed)] == [data, data]
