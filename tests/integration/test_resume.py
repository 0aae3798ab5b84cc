"""Resuming missed messages after a reconnect, through the whole gateway."""

from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.clock import EpochMs
from chalicelib.protocol.ulid import earliest, timestamp_of
from tests.support.clients import Client, Socket

Start = Callable[..., Client]


def resume(socket: Socket, after: str) -> tuple[list[Any], Any]:
    """Resume; return the missed messages and the answer that follows them."""
    answer = socket.ask({"action": "resume", "after": after, "ref": "r"})
    messages = []
    while answer["type"] == "messages":
        messages += answer["messages"]
        answer = socket.receive()
    return messages, answer


def data_of(messages: list[Any]) -> list[Any]:
    return [message["data"] for message in messages]


def first(herald: Client, user: str, socket: Socket) -> Any:
    """Send a message to a user's connection, and return it as received."""
    herald.report({"users": [user]}, "first")
    [message] = socket.receive()["messages"]
    return message


def test_missed_messages_arrive_once_and_in_order(herald_with: Start, user: str) -> None:
    herald = herald_with(
        GATEWAY_CONCURRENCY="1"
    )  # with a single sender, the order of messages is known
    socket = herald.connect(user, groups=[user])
    seen = first(herald, user, socket)
    socket.connection.close()
    for message in (
        {"to": {"users": [user]}, "data": 1, "type": "chat"},
        {"to": {"groups": [user]}, "data": 2},
        {"to": {"all": True}, "data": 3},
        {"to": {"groups": [user, f"{user}-not"]}, "data": 4},
        {"to": {"users": [user]}, "data": "typing", "store": False},
        {"to": {"users": [f"{user}-not"]}, "data": "another's"},
        {"to": {"all": True, "exceptUsers": [user]}, "data": "not for him"},
    ):
        assert herald.post(message).status_code == 200

    again = herald.connect(user, groups=[user])
    messages, answer = resume(again, seen["id"])
    assert data_of(messages) == [1, 2, 3, 4]
    assert messages[0]["type"] == "chat"
    assert messages[0].keys() == seen.keys()
    assert [one["id"] for one in messages] == sorted(one["id"] for one in messages)
    assert answer == {"type": "resumed", "count": 4, "complete": True, "ref": "r"}

    messages, answer = resume(again, messages[-1]["id"])
    assert messages == []
    assert answer == {"type": "resumed", "count": 0, "complete": True, "ref": "r"}


def test_a_resume_returns_only_later_messages_if_one_function_sent_all(
    herald_with: Start, user: str
) -> None:
    herald = herald_with(GATEWAY_CONCURRENCY="1")
    socket = herald.connect(user)
    seen = [first(herald, user, socket) for _ in range(4)]
    messages, answer = resume(socket, seen[1]["id"])
    assert [one["id"] for one in messages] == [seen[2]["id"], seen[3]["id"]]
    assert answer == {"type": "resumed", "count": 2, "complete": True, "ref": "r"}


def test_a_client_without_messages_resumes_from_the_id_of_a_time(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    seen = first(herald, user, socket)
    moment = timestamp_of(seen["id"])
    messages, answer = resume(socket, earliest(EpochMs(moment + 500)))
    assert seen in messages
    assert answer["complete"] is True


def test_a_resume_from_before_the_history_is_not_complete(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_HISTORY_SECONDS="60")
    socket = herald.connect(user)
    seen = first(herald, user, socket)
    messages, answer = resume(socket, earliest(EpochMs(timestamp_of(seen["id"]) - 61_000)))
    assert messages == [seen]
    assert (answer["count"], answer["complete"]) == (1, False)


def test_nothing_is_stored_when_the_history_is_off(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_HISTORY_SECONDS="0")
    socket = herald.connect(user, groups=["room"])
    seen = first(herald, user, socket)
    socket.connection.close()
    herald.report({"users": [user]})
    messages, answer = resume(herald.connect(user), earliest(EpochMs(timestamp_of(seen["id"]) - 1)))
    assert messages == []
    assert answer == {"type": "resumed", "count": 0, "complete": False, "ref": "r"}
    assert herald.tables.scan(TableName="herald-history")["Items"] == []


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({}, "after must be a string"),
        ({"after": 1}, "after must be a string"),
        ({"after": ""}, "after must be the id of a message"),
        ({"after": "01J"}, "after must be the id of a message"),
        ({"after": "8" + "0" * 25}, "after must be the id of a message"),
        ({"after": "01ARZ3NDEKTSV4RRFFQ69G5FAU"}, "after must be the id of a message"),
        ({"after": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "limit": 1}, "limit is not a known field"),
    ],
)
def test_an_invalid_resume_is_a_bad_request(
    herald: Client, user: str, fields: Any, detail: str
) -> None:
    socket = herald.connect(user)
    answer = socket.ask({"action": "resume", "ref": "r", **fields})
    assert (answer["type"], answer["code"], answer["ref"]) == ("error", "bad_request", "r")
    assert detail in answer["message"]


def test_resumes_are_limited(herald_with: Start, user: str) -> None:
    herald = herald_with(HERALD_CONNECT_RATE="2", GATEWAY_CONCURRENCY="1")
    socket = herald.connect(user)
    after = first(herald, user, socket)["id"]
    for _ in range(2):
        assert resume(socket, after)[1]["type"] == "resumed"
    answer = resume(socket, after)[1]
    assert (answer["type"], answer["code"]) == ("error", "rate_limited")
    assert 0 < answer["retryAfterMs"] <= 30_000
    assert socket.ask({"action": "ping"})["type"] == "pong"
