"""The sweep as it runs beside everything else, with real sockets."""

import time
from collections.abc import Callable

import pytest

from tests.support.clients import Client, eventually

LEEWAY = 5


@pytest.fixture
def herald(herald_with: Callable[..., Client]) -> Client:
    return herald_with(GATEWAY_SCHEDULE_SECONDS="0.5", HERALD_STALE_AFTER_SECONDS="1")


def test_the_sweep_removes_dead_connections_keeps_silent_ones_and_ends_expired_ones(
    herald: Client, user: str
) -> None:
    silent = herald.connect(user)
    expiring = herald.connect(f"{user}-expiring", exp=int(time.time()) + 4 - LEEWAY)
    [item] = herald.connections(user)
    ghost = {**item, "connectionId": {"S": "AAAAAAAAAAAAAAA="}, "userId": {"S": f"{user}-ghost"}}
    ghost["connectedAt"] = ghost["timestamp"] = {"N": str(int(time.time() * 1000) - 60_000)}
    herald.tables.put_item(TableName="herald-connections", Item=ghost)

    eventually(lambda: not herald.connections(f"{user}-ghost"))
    assert expiring.receive() == {"type": "notice", "code": "token_expired"}
    assert expiring.closed_with()[0] == 1000
    eventually(lambda: not herald.connections(f"{user}-expiring"))
    probed = int(item["timestamp"]["N"])
    eventually(lambda: int(herald.connections(user)[0]["timestamp"]["N"]) > probed)
    assert herald.connections(user)[0]["status"] == {"S": "active"}
    assert silent.ask({"action": "ping"})["type"] == "pong"
