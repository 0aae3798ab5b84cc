"""Names of users, tenants and groups: the longest ones work, and longer ones are refused."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.support.clients import Client, token

LONGEST = {
    "ascii": "n" * 128,
    "emoji": "\N{PARTY POPPER}" * 64,
    "controls": "\x01" * 128,
    "umlauts": "ü" * 128,
}
TOO_LONG = ["n" * 129, "\N{PARTY POPPER}" * 128, "\N{PARTY POPPER}" * 65, "ü" * 127 + "€"]


def post(herald: Client, to: dict[str, Any], *, user: str, tenant: str) -> Any:
    headers = {
        "Authorization": f"Bearer {token(user, tenant=tenant)}",
        "Idempotency-Key": "k" * 255,
    }
    return herald.http.post("/messages", json={"to": to, "data": 1}, headers=headers)


@pytest.mark.parametrize("name", LONGEST.values(), ids=LONGEST)
def test_the_longest_names_can_connect_join_send_and_leave(herald: Client, name: str) -> None:
    socket = herald.connect(name, tenant=name, groups=[name])
    for action in ("leave", "join"):
        assert socket.ask({"action": action, "group": name})["type"] in ("left", "joined")
    for to in ({"users": [name]}, {"groups": [name]}):
        answer = post(herald, to, user="".join(to), tenant=name)
        assert (answer.status_code, answer.json()["messages"][0]["delivered"]) == (200, 1)
        assert socket.receive()["type"] == "messages"
    missed = socket.ask({"action": "resume", "after": "0" * 26})
    assert missed["type"] == "messages"
    assert herald.presence(quote(name, safe=""), name, tenant=name)["connections"] == 1


@pytest.mark.parametrize("name", TOO_LONG, ids=["ascii", "emoji", "fewer-emoji", "mixed"])
def test_a_name_that_is_too_long_is_refused_wherever_it_enters(herald: Client, name: str) -> None:
    good: dict[str, Any] = {"user": "alice", "tenant": "t"}
    for claims in ({"user": name, "tenant": name}, {"user": name}, {"tenant": name}):
        assert post(herald, {"users": ["bob"]}, **{**good, **claims}).status_code == 401
        bearer = token(**{**good, **claims})
        assert herald.refusal(headers={"Authorization": f"Bearer {bearer}"}) == 401
    in_a_list = token("alice", tenant="t", groups=[name])
    assert herald.refusal(headers={"Authorization": f"Bearer {in_a_list}"}) == 401
    for to in (
        {"users": [name]},
        {"groups": [name]},
        {"connections": [name]},
        {"all": True, "exceptUsers": [name]},
        {"all": True, "exceptConnections": [name]},
    ):
        answer = post(herald, to, **good)
        assert answer.status_code == 400
        assert "must be a string of 1 to 128 characters" in answer.json()["detail"]
    socket = herald.connect("alice", groups=["*"])
    answer = socket.ask({"action": "join", "group": name})
    assert (answer["type"], answer["code"]) == ("error", "bad_request")
    headers = {"Authorization": f"Bearer {token()}"}
    assert herald.http.get(f"/users/{quote(name)}", headers=headers).status_code == 400
