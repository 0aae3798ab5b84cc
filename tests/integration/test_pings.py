"""`ping`, which API Gateway answers itself, with and without its route."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.api.mock_routes import MockRoute
from infra.mock_routes import PING
from tests.support.clients import Client, whole_lines

Start = Callable[..., Client]
QUIET = {"GATEWAY_SCHEDULE_SECONDS": "86400"}


def test_a_ping_costs_no_call(herald_with: Start, tmp_path: Path, user: str) -> None:
    calls = tmp_path / "calls"
    herald = herald_with(GATEWAY_CALLS_FILE=str(calls), **QUIET)
    socket = herald.connect(user)
    before = whole_lines(calls)
    assert before  # the handshake's
    for number in range(300):  # far more than the rate
        assert socket.ask({"action": "ping", "ref": str(number)})["type"] == "pong"
    assert whole_lines(calls) == before


@pytest.mark.parametrize(
    "frame",
    [
        {"action": "ping"},
        {"action": "ping", "ref": "r1"},
        {"action": "ping", "ref": 1, "more": {"a": []}},
    ],
)
def test_a_ping_is_answered_without_its_ref_and_whatever_else_it_has(
    herald: Client, user: str, frame: Any
) -> None:
    before = int(time.time() * 1000)
    socket = herald.connect(user)
    socket.connection.send(json.dumps(frame))
    pong = socket.receive()
    assert before <= int(pong.pop("timestamp")) <= time.time() * 1000
    assert pong == {"type": "pong"}


@pytest.mark.parametrize("context", [{"requestTimeEpoch": 1_700_000_000_000}, {}])
def test_a_pong_is_valid_json_even_if_the_time_is_not_known(context: dict[str, int]) -> None:
    """No document says whether `$context.requestTimeEpoch` is known in this template."""
    answer = MockRoute(PING).answer('{"action": "ping"}', context)
    assert answer is not None
    timestamp = str(context.get("requestTimeEpoch", ""))
    assert json.loads(answer) == {"type": "pong", "timestamp": timestamp}


def test_pings_alone_keep_a_connection_open(herald_with: Start, user: str) -> None:
    herald = herald_with(GATEWAY_IDLE_TIMEOUT_SECONDS="0.6", **QUIET)
    idle, busy = herald.connect(f"{user}-idle"), herald.connect(user)
    for _ in range(12):
        busy.ask({"action": "ping"})
        time.sleep(0.1)
    assert idle.closed_with() == (1001, "Going away")
    assert busy.ask({"action": "ping"})["type"] == "pong"


def test_without_the_route_a_function_answers_pings(herald_with: Start, user: str) -> None:
    socket = herald_with(GATEWAY_MOCK_ROUTES="false").connect(user)
    before = int(time.time() * 1000)
    pong = socket.ask({"action": "ping", "ref": "r1"})
    assert before <= pong.pop("timestamp") <= time.time() * 1000
    assert pong == {"type": "pong", "ref": "r1"}
    assert "ref" not in socket.ask({"action": "ping"})
