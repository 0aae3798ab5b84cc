"""Groups: joined by token and by `join`, left by `leave` and at the end of the connection."""

from typing import Any

import pytest

from tests.support.clients import Client, eventually


def members(herald: Client, group: str) -> int:
    answer = herald.tables.query(
        TableName="herald-groups",
        KeyConditionExpression="#group = :group",
        ExpressionAttributeNames={"#group": "group"},
        ExpressionAttributeValues={":group": {"S": f"/{group}"}},
    )
    return int(answer["Count"])


def test_the_tokens_groups_are_joined_and_end_with_the_connection(
    herald: Client, user: str
) -> None:
    team, rooms = f"{user}-team", f"{user}-room-*"
    socket = herald.connect(user, groups=[team, rooms])
    assert herald.report({"groups": [team]})["delivered"] == 1
    assert socket.messages() == ["hello"]
    assert herald.report({"groups": [rooms]})["recipients"] == 0
    socket.connection.close()
    eventually(lambda: members(herald, team) == 0)
    assert herald.report({"groups": [team]})["recipients"] == 0


def test_a_group_that_the_token_allows_is_joined_and_left(herald: Client, user: str) -> None:
    room = f"{user}-room-1"
    socket = herald.connect(user, groups=[f"{user}-room-*"])
    for _ in range(2):
        joined = socket.ask({"action": "join", "group": room, "ref": "j"})
        assert joined == {"type": "joined", "group": room, "ref": "j"}
    assert herald.report({"groups": [room]})["delivered"] == 1
    assert socket.messages() == ["hello"]
    for _ in range(2):
        assert socket.ask({"action": "leave", "group": room}) == {"type": "left", "group": room}
    assert herald.report({"groups": [room]})["recipients"] == 0


@pytest.mark.parametrize(
    ("frame", "code", "names"),
    [
        ({"action": "join", "group": "elsewhere"}, "forbidden", "groups"),
        ({"action": "join"}, "bad_request", "group"),
        ({"action": "join", "group": ""}, "bad_request", "group"),
        ({"action": "leave", "group": 7}, "bad_request", "group"),
        ({"action": "join", "group": "room-1", "extra": 1}, "bad_request", "extra"),
        ({"action": "join", "group": "room-" + "x" * 130}, "bad_request", "group"),
    ],
)
def test_a_group_that_cannot_be_joined_is_refused_by_name(
    herald: Client, user: str, frame: Any, code: str, names: str
) -> None:
    socket = herald.connect(user, groups=["room-*"])
    error = socket.ask(frame)
    assert (error["type"], error["code"]) == ("error", code)
    assert names in error["message"]


def test_several_groups_reach_everyone_once_and_exceptions_hold(herald: Client, user: str) -> None:
    a, b = f"{user}-a", f"{user}-b"
    both = herald.connect(f"{user}-1", groups=[a, b])
    one = herald.connect(f"{user}-2", groups=[b])
    stranger = herald.connect(f"{user}-3", groups=[a, b], tenant="other")
    assert herald.report({"groups": [a, b]})["recipients"] == 2
    assert both.messages() == one.messages() == ["hello"]
    report = herald.report({"groups": [a, b], "exceptUsers": [f"{user}-1"]})
    assert report["recipients"] == 1
    assert one.messages() == ["hello"]
    both.assert_quiet()
    stranger.assert_quiet()
    messages = [{"to": {"groups": [a]}, "data": 1}, {"to": {"users": [f"{user}-1"]}, "data": 2}]
    assert herald.post({"messages": messages}).status_code == 200
    assert both.messages() == [1, 2]
