"""The actions that a client may ask for over its WebSocket."""

import json
import time
from typing import Any

import pytest

from tests.support.clients import LEAVE, Client, eventually, token


def test_a_send_is_acknowledged_with_its_report(herald: Client, user: str) -> None:
    sender, receiver = herald.connect("sender"), herald.connect(user)
    ack = sender.ask(
        {"action": "send", "to": {"users": [user]}, "data": {"n": 1}, "type": "chat", "ref": "7"}
    )
    [message] = receiver.receive()["messages"]
    assert ack == {
        "type": "ack", "ref": "7", "id": message["id"], "recipients": 1, "delivered": 1,
        "gone": 0, "stale": 0, "rejected": 0, "failed": [],
    }  # fmt: skip
    assert (message["from"], message["type"], message["data"]) == ("sender", "chat", {"n": 1})


def test_a_send_to_oneself_brings_the_message_and_the_ack(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    frame = {"action": "send", "to": {"users": [user]}, "data": 1}
    assert {socket.ask(frame)["type"], socket.receive()["type"]} == {"messages", "ack"}


DEEP = "[" * 10_000


@pytest.mark.parametrize(
    ("frame", "code", "names"),
    [
        ("not json", "bad_request", "JSON"),
        ("", "bad_request", "JSON"),
        ("[1]", "bad_request", "object"),
        ("NaN", "bad_request", "NaN"),
        (DEEP, "bad_request", "JSON"),
        ('{"action": "nope", "ref": "r"}', "bad_request", "action"),
        ('{"action": ["ping"]}', "bad_request", "action"),
        ('{"ref": "r"}', "bad_request", "action"),
        ('{"action": "heartbeat", "ref": 1}', "bad_request", "ref"),
        ('{"action": "heartbeat", "extra": 1}', "bad_request", "extra"),
        ('{"action": "join", "ref": "\\ud800"}', "bad_request", "ref contains a lone surrogate"),
        ('{"action": "heartbeat", "\\ud800": 1}', "bad_request", "? is not a known field"),
        (
            '{"action": "join", "group": "\\ud800"}',
            "bad_request",
            "group contains a lone surrogate",
        ),
        ('{"action": "send", "data": 1, "ref": "r"}', "bad_request", "to is missing"),
        ('{"action": "send", "to": {"users": []}, "data": 1}', "bad_request", "to.users"),
        ('{"action": "send", "to": {"users": ["a"]}, "data": "\\ud800"}', "bad_request", "data"),
        ('{"action": "send", "to": {"all": true}, "data": 1}', "forbidden", "messages:broadcast"),
    ],
)
def test_bad_input_is_answered_with_an_error_and_the_socket_stays_open(
    herald: Client, frame: str, code: str, names: str
) -> None:
    socket = herald.connect("clumsy", scope="ws:connect messages:send")
    answer = socket.ask(frame)
    assert (answer["type"], answer["code"]) == ("error", code)
    assert names in answer["message"]
    if '"ref": "r"' in frame:
        assert answer["ref"] == "r"
    assert socket.ask({"action": "ping"})["type"] == "pong"
    socket.connection.close()
    eventually(lambda: not herald.connections("clumsy"))


@pytest.mark.parametrize("frame", [LEAVE, {"action": "heartbeat"}, {"action": "nope"}])
def test_a_frame_updates_the_last_activity(herald: Client, user: str, frame: Any) -> None:
    socket = herald.connect(user)

    def activity() -> int:
        headers = {"Authorization": f"Bearer {token(user)}"}
        answer = herald.http.get(f"/users/{user}/connections", headers=headers)
        [shown] = answer.json()["connections"]
        seen = int(herald.presence(user)["lastSeen"])
        assert seen == shown["timestamp"]
        return seen

    connected = activity()
    time.sleep(0.01)
    socket.ask(frame)
    assert activity() > connected


def test_a_heartbeat_is_answered_with_the_time_and_its_ref_once_a_minute(
    herald: Client, user: str
) -> None:
    socket = herald.connect(user)
    before = int(time.time() * 1000)
    answer = socket.ask({"action": "heartbeat", "ref": "r1"})
    assert before <= answer.pop("timestamp") <= time.time() * 1000
    assert answer == {"type": "heartbeat", "ref": "r1"}
    refused = socket.ask({"action": "heartbeat", "ref": "r2"})
    assert (refused["code"], refused["ref"]) == ("rate_limited", "r2")
    assert 50_000 < refused["retryAfterMs"] <= 60_000
    assert herald.connect(user).ask({"action": "heartbeat"})["type"] == "heartbeat"


def test_many_frames_at_once_are_all_answered(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    for number in range(100):
        socket.connection.send(json.dumps({**LEAVE, "ref": str(number)}))
    answers: list[Any] = [socket.receive() for _ in range(100)]
    assert {answer["ref"] for answer in answers} == {str(number) for number in range(100)}
