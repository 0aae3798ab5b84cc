"""The log says which tenant, which user and which address caused what."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.integration.test_metrics import lines
from tests.support.clients import SECRET, eventually, token
from tests.support.process import running

NAME = "zoë\n\N{PARTY POPPER}"
ADDRESS = "127.0.0.1"


def by_message(printed: Path) -> dict[str, list[Any]]:
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for line in lines(printed):
        found[line.get("message", "")].append(line)
    return found


def caused_by(line: Any) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in ("tenant", "sender", "sourceIp"))


def test_the_log_names_who_causes_load_and_who_is_refused(checkout: Path, tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    settings = {
        "HERALD_JWT_SECRET": SECRET,
        "HERALD_INLINE_RECIPIENTS": "1",
        "HERALD_MAX_CONNECTIONS_PER_USER": "2",
    }
    with running(checkout, printed, **settings) as herald:
        sockets = [herald.connect(NAME, tenant="acme") for _ in range(2)]
        too_many = {"Authorization": f"Bearer {token(NAME, tenant='acme')}"}
        assert herald.refusal(headers=too_many) == 429
        inline = herald.post({"to": {"users": ["nobody"]}, "data": 1}, NAME, tenant="acme")
        assert inline.status_code == 200
        queued = herald.post({"to": {"all": True}, "data": 1}, NAME, tenant="acme")
        assert queued.status_code == 202
        assert sockets[0].messages() == [1]
        assert herald.post({"to": {"all": True}, "data": 1}, "eve", scope="").status_code == 403
        ack = sockets[0].ask({"action": "send", "to": {"users": ["nobody"]}, "data": 1})
        assert ack["type"] == "ack"
        assert sockets[0].ask({"action": "join", "group": "secret"})["code"] == "forbidden"
        assert herald.refusal("?token=nonsense") == 401
        eventually(lambda: len(by_message(printed)["broadcast"]) == 3)
        eventually(lambda: len(by_message(printed)["handshake refused"]) == 2)

    found = by_message(printed)
    zoe = ("acme", NAME, ADDRESS)
    assert [caused_by(one) for one in found["accepted"]] == [zoe] * 3
    [first, second, _] = found["accepted"]
    assert first["messageIds"] == [inline.json()["messages"][0]["id"]]
    assert (first["audiences"], second["audiences"]) == (["users"], ["all"])
    assert first["bytes"] > 0
    assert {caused_by(one)[:2] for one in found["broadcast"]} == {zoe[:2]}
    assert [caused_by(one) for one in found["request refused"]] == [("", "eve", ADDRESS)]
    assert found["request refused"][0]["code"] == "forbidden"
    assert [caused_by(one) for one in found["frame refused"]] == [zoe]
    refused = {one["code"]: caused_by(one) for one in found["handshake refused"]}
    assert refused == {
        "too_many_connections": zoe,
        "unauthorized": (None, None, ADDRESS),
    }
