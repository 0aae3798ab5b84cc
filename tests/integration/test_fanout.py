"""Queued messages in the local gateway: SQS, workers, progress."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from jwcrypto import jwe, jwk

from gateway.aws.emulator import client
from gateway.configuration import PROJECT
from tests.support.clients import Client, Socket, configured, eventually, served, token
from tests.support.queues import hide_jobs_for
from tests.support.stub import stub
from tests.support.tables import TABLES, scan

Start = Callable[..., Client]


@pytest.fixture(scope="module")
def herald() -> Iterator[Client]:
    """A gateway that queues messages with more than two recipients."""
    with (
        served(configured(HERALD_INLINE_RECIPIENTS="2")) as running,
        contextlib.closing(Client(running)) as clients,
    ):
        yield clients


def queued(herald: Client, body: Any, **claims: Any) -> list[str]:
    """Post messages that must be queued; return their ids."""
    answer = herald.post(body, **claims)
    assert answer.status_code == 202, answer.text
    messages = answer.json()["messages"]
    assert answer.json() == {"messages": [{"id": one["id"], "queued": True} for one in messages]}
    return [one["id"] for one in messages]


def progress(herald: Client, message_id: str, user: str = "alice", **claims: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token(user, **claims)}"}
    return herald.http.get(f"/messages/{message_id}", headers=headers)


def final(herald: Client, message_id: str, **claims: Any) -> Any:
    """Wait until a message is delivered; return its report."""
    eventually(lambda: progress(herald, message_id, **claims).json()["done"])
    return progress(herald, message_id, **claims).json()


def audience(herald: Client, tenant: str, count: int) -> list[Socket]:
    return [herald.connect(f"user-{number}", tenant=tenant) for number in range(count)]


def test_a_message_above_the_inline_limit_is_queued_and_reaches_everybody(herald: Client) -> None:
    sockets = audience(herald, "many", 7)
    body = {"to": {"all": True}, "type": "news", "data": {"text": "hello"}}
    [message_id] = queued(herald, body, tenant="many")
    for socket in sockets:
        frame = socket.receive()
        [message] = frame["messages"]
        assert (frame["type"], message["id"], message["type"]) == ("messages", message_id, "news")
        assert (message["from"], message["data"]) == ("alice", {"text": "hello"})
    report = final(herald, message_id, tenant="many")
    assert report == {
        "id": message_id,
        "recipients": 7,
        "delivered": 7,
        "gone": 0,
        "stale": 0,
        "rejected": 0,
        "failed": [],
        "done": True,
        "shards": {"total": 1, "done": 1, "failed": 0},
    }


def test_a_message_up_to_the_inline_limit_is_delivered_at_once(herald: Client) -> None:
    sockets = audience(herald, "few", 2)
    report = herald.report({"all": True}, tenant="few")
    assert (report["recipients"], report["delivered"]) == (2, 2)
    answer = progress(herald, report["id"], tenant="few")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    sockets.append(herald.connect("user-2", tenant="few"))
    queued(herald, {"to": {"all": True}, "data": "hello"}, tenant="few")
    named = {"to": {"users": ["user-0", "user-1", "user-2"]}, "data": "hello"}
    queued(herald, named, tenant="few")
    for expected, socket in zip((3, 3, 2), sockets, strict=True):
        received = 0
        while received < expected:  # waiting messages arrive in one frame
            received += len(socket.messages())
        assert received == expected


def test_messages_of_one_request_are_queued_together_and_keep_their_order(herald: Client) -> None:
    sockets = audience(herald, "order", 3)
    few, many = {"users": ["user-0"]}, {"all": True}
    messages = [{"to": many if number % 2 else few, "data": number} for number in range(6)]
    ids = queued(herald, {"messages": messages}, tenant="order")
    assert sockets[0].messages() == [0, 1, 2, 3, 4, 5]
    assert sockets[1].messages() == sockets[2].messages() == [1, 3, 5]
    assert [final(herald, one, tenant="order")["delivered"] for one in ids] == [1, 3] * 3


def test_the_ack_of_a_send_says_that_the_message_is_queued(herald: Client) -> None:
    sockets = audience(herald, "socket", 3)
    frame = {"action": "send", "to": {"all": True}, "data": "hello", "ref": "r"}
    sockets[0].connection.send(json.dumps(frame))
    frames = sorted((sockets[0].receive(), sockets[0].receive()), key=lambda one: one["type"])
    [message] = frames[1]["messages"]
    assert frames[0] == {"type": "ack", "id": message["id"], "queued": True, "ref": "r"}
    report = final(herald, message["id"], user="user-0", tenant="socket")
    assert report["delivered"] == 3


def test_a_replayed_post_is_answered_202_again_and_queues_nothing(herald: Client) -> None:
    sockets = audience(herald, "again", 3)
    headers = {
        "Authorization": f"Bearer {token(tenant='again')}",
        "Content-Type": "application/json",
        "Idempotency-Key": "once",
    }
    body = {"to": {"all": True}, "data": "hello"}
    first, again = (herald.http.post("/messages", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.content == first.content
    for socket in sockets:
        assert socket.messages() == ["hello"]
        socket.assert_quiet()


def test_only_the_sender_or_a_manager_can_read_the_progress(herald: Client) -> None:
    audience(herald, "whose", 3)
    body = {"to": {"all": True}, "data": "hello"}
    [message_id] = queued(herald, body, tenant="whose")
    final(herald, message_id, tenant="whose", scope="ws:connect")
    for user, scope, tenant, status in (
        ("alice", "ws:connect", "whose", 200),
        ("bob", "connections:manage", "whose", 200),
        ("bob", "ws:connect messages:send messages:broadcast users:read", "whose", 403),
        ("alice", "connections:manage", "elsewhere", 404),
        ("alice", "connections:manage", None, 404),
    ):
        answer = progress(herald, message_id, user, scope=scope, tenant=tenant)
        assert answer.status_code == status, (user, scope, tenant)
    assert progress(herald, "nonsense", tenant="whose").status_code == 404
    assert herald.http.get(f"/messages/{message_id}").status_code == 401


def test_a_queued_message_stays_in_its_tenant(herald: Client) -> None:
    here, there = audience(herald, "here", 3), audience(herald, "there", 3)
    body = {"to": {"all": True}, "data": "ours"}
    [message_id] = queued(herald, body, tenant="here")
    assert final(herald, message_id, tenant="here")["recipients"] == 3
    for socket in here:
        assert socket.messages() == ["ours"]
    for socket in there:
        socket.assert_quiet()


def test_a_rejected_connection_is_removed_and_named_in_the_report(herald_with: Start) -> None:
    with stub() as stubbed:
        herald = herald_with(
            HERALD_INLINE_RECIPIENTS="2", HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint
        )
        for number in range(4):
            herald.connect(f"user-{number}")
        gone = herald.connection_id("user-1")
        stubbed.behaviours[gone] = [403]
        [message_id] = queued(herald, {"to": {"all": True}, "data": "hello"})
        report = final(herald, message_id)
        assert (report["recipients"], report["delivered"], report["rejected"]) == (4, 3, 1)
        entry = {"connectionId": gone, "userId": "user-1", "reason": "http_403"}
        assert report["failed"] == [entry]
        assert herald.connections("user-1") == []


def test_without_a_queue_everything_is_delivered_at_once(herald_with: Start) -> None:
    herald = herald_with(HERALD_INLINE_RECIPIENTS="2", HERALD_FANOUT_QUEUE_URL="")
    for number in range(3):
        herald.connect(f"user-{number}")
    assert herald.report({"all": True})["delivered"] == 3


def test_an_encrypted_message_is_stored_encrypted_while_it_is_queued(herald_with: Start) -> None:
    keys = {"keys": [{"kty": "oct", "kid": "k", "k": "bmV3" * 11}]}
    herald = herald_with(HERALD_INLINE_RECIPIENTS="2", HERALD_ENCRYPTION_KEYS=json.dumps(keys))
    sockets = [herald.connect(f"user-{number}") for number in range(3)]
    body = {"to": {"all": True}, "data": "the secret of the day", "encrypt": True}
    [message_id] = queued(herald, body)
    assert final(herald, message_id)["delivered"] == 3
    for number, socket in enumerate(sockets):
        [message] = socket.receive()["messages"]
        answer = herald.http.get(
            "/keys", headers={"Authorization": f"Bearer {token(f'user-{number}')}"}
        )
        key = jwk.JWK(**answer.json()["keys"][0])
        encrypted = jwe.JWE()
        encrypted.deserialize(message["data"], key)
        assert json.loads(encrypted.payload) == "the secret of the day"
    [content] = [
        item
        for item in scan(herald.tables, TABLES.messages)
        if item["id"]["S"].startswith("content/")
    ]
    stored = bytes(content["part"]["B"])
    assert stored.count(b".") == 4  # a JWE
    assert b"secret" not in stored


def test_jobs_of_one_batch_cost_one_call_for_each_connection(herald_with: Start) -> None:
    """Send ten messages to five connections, with the batching window off and on."""
    calls = {}
    for window in ("0", "5"):
        with stub() as stubbed:
            herald = herald_with(
                HERALD_INLINE_RECIPIENTS="2",
                HERALD_FANOUT_BATCH_SECONDS=window,
                HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint,
            )
            for number in range(5):
                herald.connect(f"user-{number}")
            ids = []
            for number in range(10):
                ids += queued(herald, {"to": {"all": True}, "data": number})
                if window == "0":
                    final(herald, ids[-1])
            for message_id in ids:
                assert final(herald, message_id)["delivered"] == 5
            calls[window] = len(stubbed.requests)
            for number in range(5):
                bodies = stubbed.received(herald.connection_id(f"user-{number}"))
                received = [one["data"] for body in bodies for one in json.loads(body)["messages"]]
                assert received == list(range(10))
    assert calls["0"] == 50
    assert 5 <= calls["5"] <= 10  # a slow machine may need a second window


def test_a_job_that_always_fails_goes_to_the_dead_letter_queue(herald_with: Start) -> None:
    herald = herald_with(HERALD_INLINE_RECIPIENTS="2")
    for number in range(3):
        herald.connect(f"user-{number}")
    sqs = client("sqs", herald.running.aws)
    url = herald.running.aws["HERALD_FANOUT_QUEUE_URL"]
    hide_jobs_for(1, sqs, url)
    sqs.send_message(QueueUrl=url, MessageBody="poison")
    [message_id] = queued(herald, {"to": {"all": True}, "data": "hello"})
    assert final(herald, message_id)["delivered"] == 3  # the failing job does not delay it
    letters = sqs.get_queue_url(QueueName="herald-fanout-dead-letters")["QueueUrl"]
    found: list[Any] = []

    def arrived() -> bool:
        found.extend(sqs.receive_message(QueueUrl=letters).get("Messages", []))
        return bool(found)

    eventually(arrived)
    assert [message["Body"] for message in found] == ["poison"]


DYING = """

import os
from pathlib import Path

from chalicelib.delivery.http import Transport

start, requests = Transport.start, []


def start_or_die(self, origin, job, request):
    requests.append(job)
    if len(requests) == 4 and not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), 9)
    start(self, origin, job, request)


Transport.start = start_or_die
"""


def test_a_job_whose_worker_is_killed_runs_again_and_reaches_everybody(tmp_path: Path) -> None:
    project = tmp_path / "herald"
    shutil.copytree(PROJECT / "chalicelib", project / "chalicelib")
    (project / "app.py").write_text((PROJECT / "app.py").read_text() + DYING)
    configuration = replace(configured(HERALD_INLINE_RECIPIENTS="2"), project=project)
    with served(configuration) as running, contextlib.closing(Client(running)) as herald:
        sockets = [herald.connect(f"user-{number}") for number in range(6)]
        hide_jobs_for(2, client("sqs", running.aws), running.aws["HERALD_FANOUT_QUEUE_URL"])
        [message_id] = queued(herald, {"to": {"all": True}, "data": "hello"})
        report = final(herald, message_id)
        assert (report["recipients"], report["delivered"]) == (6, 6)
        assert (project / "died").exists()
        for socket in sockets:
            assert socket.messages() == ["hello"]


def test_a_large_audience_is_refused_and_gets_nothing_while_the_queue_is_missing(
    herald_with: Start,
) -> None:
    herald = herald_with(HERALD_INLINE_RECIPIENTS="2")
    sockets = [herald.connect(f"user-{number}") for number in range(3)]
    sqs = client("sqs", herald.running.aws)
    url = herald.running.aws["HERALD_FANOUT_QUEUE_URL"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])
    sqs.delete_queue(QueueUrl=url)
    headers = {
        "Authorization": f"Bearer {token()}",
        "Content-Type": "application/json",
        "Idempotency-Key": "k",
    }
    body = {"to": {"all": True}, "data": "hello"}
    refused = herald.http.post("/messages", json=body, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert refused.headers["Retry-After"] == "1"
    for socket in sockets:
        socket.assert_quiet()
    sqs.create_queue(QueueName=url.rpartition("/")[2], Attributes=attributes["Attributes"])
    again = herald.http.post("/messages", json=body, headers=headers)
    assert again.status_code == 202
    for socket in sockets:
        assert socket.messages() == ["hello"]
