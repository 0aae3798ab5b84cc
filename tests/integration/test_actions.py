"""The actions that a client may ask for over its WebSocket."""

import json
import time
from typing import Any

import pytest

from tests.support.clients import Client, eventually


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
        ('{"action": "ping", "ref": 1}', "bad_request", "ref"),
        ('{"action": "ping", "extra": 1}', "bad_request", "extra"),
        ('{"action": "ping", "ref": "\\ud800"}', "bad_request", "ref contains a lone surrogate"),
        ('{"action": "ping", "\\ud800": 1}', "bad_request", "? is not a known field"),
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


def test_a_frame_updates_the_last_activity(herald: Client, user: str) -> None:
    socket = herald.connect(user)

    def timestamp() -> int:
        [item] = herald.connections(user)
        return int(item["timestamp"]["N"])

    connected = timestamp()
    time.sleep(0.01)
    socket.ask({"action": "ping"})
    assert timestamp() > connected


def test_many_frames_at_once_are_all_answered(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    for number in range(100):
        socket.connection.send(json.dumps({"action": "ping", "ref": str(number)}))
    answers: list[Any] = [socket.receive() for _ in range(100)]
    assert {answer["ref"] for answer in answers} == {str(number) for number in range(100)}
