"""The command that a user pastes."""

import json
import shlex

from gateway.first_message import curl


def test_the_command_can_be_parsed_by_a_shell() -> None:
    words = shlex.split(curl("http://127.0.0.1:1", "a.b.c"))
    assert words[:2] == ["curl", "http://127.0.0.1:1/messages"]
    assert "Authorization: Bearer a.b.c" in words
    assert json.loads(words[-1])["to"] == {"users": ["bob"]}
