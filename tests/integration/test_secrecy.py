"""Logs, tables and errors contain no token, secret or message body.

A gateway runs as `make run` starts it, and gets valid and invalid requests with secrets in them.
Its output, its tables and its error answers are then searched for these secrets.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from chalicelib.auth.principal import user_key
from chalicelib.protocol.encryption import Encryption, FixedKeys
from chalicelib.settings import MasterKey
from gateway.aws.emulator import client
from tests.support.clients import Client, token
from tests.support.process import START_SECONDS, running
from tests.support.stub import Behaviour, Stub, stub
from tests.support.tables import TABLES, scan

SECRET = "the-secret-that-signs-tokens-is-SIGNINGCANARY"
MASTER = base64.urlsafe_b64encode(b"MASTERCANARY" * 3).decode()
BODY = "BODYCANARY"
SAID = (
    "token refused",
    "handshake refused",
    "request refused",
    "frame refused",
    "accepted",
    "not delivered",
    "broadcast",
    "could not publish",
    "storage refused",
    "DISCONNECT",
    "not a Herald job",
)
"""Log messages that the scenario must cause."""


class Evidence:
    """Error answers, and the secrets that must not be in them."""

    def __init__(self) -> None:
        derived = Encryption(FixedKeys([MasterKey("k", b"MASTERCANARY" * 3)])).keys_of(
            user_key("t", "alice")
        )
        self.secrets = {"CANARY", MASTER[:32], derived[0]["k"]}
        self.errors: list[str] = []

    def token(self, user: str = "alice", **claims: Any) -> str:
        """Return a token whose parts are secrets from now on."""
        return self.keep(token(user, key=SECRET, tenant="t", **claims))

    def keep(self, bearer: str) -> str:
        self.secrets |= {part for part in bearer.split(".")[1:] if len(part) > 20}
        return bearer

    def refused(self, answer: httpx.Response) -> None:
        assert answer.status_code >= 400
        self.errors.append(f"{answer.status_code} {answer.headers} {answer.text}")

    def assert_nowhere_in(self, *places: str) -> None:
        for place in places:
            for secret in self.secrets:
                found = place.find(secret)
                assert found < 0, f"…{place[max(0, found - 300) : found + len(secret)]}"


@pytest.fixture
def trouble() -> Iterator[Stub]:
    with stub() as endpoint:
        yield endpoint


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    return tmp_path / "printed"


@pytest.fixture
def herald(checkout: Path, printed: Path, trouble: Stub) -> Iterator[Client]:
    """A client of `make run`, with deliveries to a stub and output in a file."""
    environment = {
        "HERALD_JWT_SECRET": SECRET,
        "HERALD_ENCRYPTION_KEYS": json.dumps({"keys": [{"kty": "oct", "kid": "k", "k": MASTER}]}),
        "HERALD_MANAGEMENT_ENDPOINT": trouble.endpoint,
        "HERALD_NOTIFY_TOPIC_ARN": "arn:aws:sns:us-east-1:000000000000:there-is-none",
        "HERALD_MESSAGE_BURST": "60",
        "HERALD_INLINE_RECIPIENTS": "4",
    }
    with running(checkout, printed, **environment) as client:
        yield client


def send_well_and_badly(herald: Client, evidence: Evidence) -> None:
    """Send valid and invalid requests; collect the error answers."""
    keys = count()

    def post(body: Any, bearer: str | None = None, content_type: str = "application/json") -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {
            "Authorization": f"Bearer {bearer or evidence.token()}",
            "Content-Type": content_type,
            "Idempotency-Key": str(next(keys)),
        }
        return herald.http.post("/messages", content=content, headers=headers)

    to = {"users": ["alice", "nobody"]}
    everybody = {"all": True}  # enough recipients for the queue
    for message, status in (
        ({"to": to, "data": BODY}, 200),
        ({"to": to, "data": {BODY: [BODY]}, "type": BODY, "encrypt": True}, 200),
        ({"to": everybody, "data": {BODY: [BODY]}, "type": BODY, "encrypt": True}, 202),
        (
            {"messages": [{"to": everybody, "data": BODY}, {"to": {"groups": ["g"]}, "data": 1}]},
            202,
        ),
    ):
        assert post(message).status_code == status
    for wrong in (
        f'{{"to": {{"users": ["a"]}}, "data": "{BODY}"'.encode(),
        BODY.encode(),
        b"\xff" + BODY.encode(),
        f'{{"data": 1e999, "to": "{BODY}"}}'.encode(),
        {"to": to, "data": BODY, "encrypt": BODY},
        {"to": to, "data": BODY, "type": BODY * 100},
        {"to": {"users": [BODY * 100]}, "data": BODY},
        {"to": BODY, "data": BODY},
        {"to": to, "data": BODY + "x" * 140_000},
        {"to": to, "data": BODY + "\ud800"},
        [BODY],
    ):
        evidence.refused(post(wrong))
    evidence.refused(post({"to": to, "data": BODY}, content_type=f"text/{BODY}"))
    evidence.refused(post({"to": {"all": True}, "data": BODY}, evidence.token(scope="")))
    for bad in bad_tokens(evidence):
        evidence.refused(post({"to": to, "data": BODY}, bad))


def bad_tokens(evidence: Evidence) -> list[str]:
    good = evidence.token()
    return [
        evidence.token(exp=1),
        evidence.token(sub=7),
        evidence.token(nbf=9_999_999_999),
        evidence.keep(good[:-3] + "AAA"),
        evidence.keep(token(key="another-key-with-32-bytes-and-a-CANARY")),
        "CANARY",
        "CANARY.CANARY.CANARY",
        evidence.keep(good + "x" * 8192),
    ]


def connect_well_and_badly(herald: Client, evidence: Evidence) -> None:
    for bad in bad_tokens(evidence):
        attempts: tuple[dict[str, Any], ...] = (
            {"query": f"?token={bad}"},
            {"headers": {"Authorization": f"Bearer {bad}"}},
            {"subprotocols": ["herald.v1", f"bearer.{bad}"]},
            {"query": f"?token={evidence.token()}", "subprotocols": [BODY]},
        )
        for options in attempts:
            with pytest.raises(InvalidStatus) as refused:
                herald.open(**options)
            answer = refused.value.response
            evidence.errors.append(f"{answer.status_code} {answer.headers} {answer.body!r}")
    herald.open(f"?token={evidence.token('carol')}")
    herald.open(subprotocols=["herald.v1", f"bearer.{evidence.token('carol')}"])


def speak_well_and_badly(herald: Client, trouble: Stub, evidence: Evidence) -> None:
    """Send valid and invalid frames. The stub gets the answers."""
    socket = herald.open(headers={"Authorization": f"Bearer {evidence.token('bob')}"})
    connection_id = herald.connection_id("bob", "t")
    frames: list[str] = [
        json.dumps(frame)
        for frame in (
            {"action": "send", "to": {"users": ["alice"]}, "data": BODY},
            {"action": "send", "to": {"users": ["alice"]}, "data": BODY, "type": 7},
            {"action": "send", "to": {"users": [7]}, "data": BODY},
            {"action": BODY, "data": BODY},
            {"action": "heartbeat", "data": BODY},
            {"action": "refresh", "token": evidence.token("bob")},
            {"action": "refresh", "token": evidence.token("mallory")},
            *({"action": "refresh", "token": bad} for bad in bad_tokens(evidence)),
            {"action": "refresh", "token": [BODY]},
        )
    ]
    frames += [BODY, f'"{BODY}"', f'{{"action": "send", "data": "{BODY}"', "[" * 1000 + BODY]
    for frame in frames:
        socket.connection.send(frame)
    wait_for(lambda: len(trouble.received(connection_id)) >= len(frames), "each frame's answer")
    for answer in trouble.received(connection_id):
        evidence.errors.append(answer.decode())
    assert sum('"type":"error"' in error for error in evidence.errors) >= len(frames) - 3


def put_into_the_queue(herald: Client, job: str) -> None:
    sqs = client("sqs", herald.running.aws)
    url = sqs.get_queue_url(QueueName="herald-fanout")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody=job)


def readable(value: Any) -> Any:
    """Convert a set or bytes to a value that JSON can hold."""
    return value.decode("latin-1") if isinstance(value, bytes) else sorted(value)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.05)


def is_printed(printed: Path, text: str) -> bool:
    return text in printed.read_text()


def test_logs_tables_and_errors_contain_no_secret(
    herald: Client, trouble: Stub, printed: Path
) -> None:
    evidence = Evidence()
    alices = [herald.open(f"?token={evidence.token(groups=['g'])}") for _ in range(4)]
    for _ in range(2):
        herald.open(f"?token={evidence.token('eve')}")
    ids = [item["connectionId"]["S"] for item in herald.connections("alice", "t")]
    behaviours: list[Behaviour] = ["403", "reset", "500", 200]
    for connection_id, behaviour in zip(ids, behaviours, strict=True):
        trouble.behaviours[connection_id] = [behaviour]
    send_well_and_badly(herald, evidence)
    connect_well_and_badly(herald, evidence)
    speak_well_and_badly(herald, trouble, evidence)
    alices[3].connection.send(b"BINARY" + BODY.encode())
    alices[2].connection.close(4000)
    put_into_the_queue(herald, BODY)
    stored = [item for table in TABLES for item in scan(herald.tables, table)]
    assert sum(item.get("id", {}).get("S", "").startswith("content/") for item in stored) == 2
    for table in TABLES:
        herald.tables.delete_table(TableName=table)
    send = {"to": {"users": ["alice"]}, "data": BODY}
    headers = {"Authorization": f"Bearer {evidence.token()}"}
    evidence.refused(herald.http.post("/messages", json=send, headers=headers))
    with pytest.raises(InvalidStatus):
        herald.open(f"?token={evidence.token('dora')}")
    for said in SAID:
        wait_for(partial(is_printed, printed, said), repr(said))
    time.sleep(0.5)  # for output that is still being written

    text = printed.read_text()
    evidence.assert_nowhere_in(text, json.dumps(stored, default=readable), *evidence.errors)
    assert len(evidence.errors) > 50
    assert len(evidence.secrets) > 30
