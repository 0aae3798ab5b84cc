"""The limit on a user's connections, and the eviction of the oldest one."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.clients import Client, Socket, eventually, token

Start = Callable[..., Client]


def test_the_evicted_connection_is_the_oldest_and_is_notified_closed_and_removed(
    herald_with: Start, user: str
) -> None:
    herald = herald_with(
        HERALD_CONNECTION_LIMIT_POLICY="evict-oldest", HERALD_MAX_CONNECTIONS_PER_USER="2"
    )
    oldest = herald.connect(user)
    evicted = herald.connection_id(user)
    second, newest = herald.connect(user), herald.connect(user)
    assert oldest.receive() == {
        "type": "notice",
        "code": "connection_removed",
        "connectionId": evicted,
        "reason": "connection_limit",
    }
    assert oldest.closed_with() == (1000, "Connection Closed Normally")
    assert herald.presence(user)["connections"] == 2
    assert herald.report({"users": [user]})["delivered"] == 2
    assert second.messages() == newest.messages() == ["hello"]


@pytest.mark.timeout(120)
def test_the_limit_holds_when_30_connections_evict_each_other_at_once(
    herald_with: Start, user: str
) -> None:
    herald = herald_with(
        HERALD_CONNECTION_LIMIT_POLICY="evict-oldest", HERALD_MAX_CONNECTIONS_PER_USER="3"
    )
    with ThreadPoolExecutor(30) as threads:
        sockets = list(threads.map(lambda _: herald.connect(user), range(30)))
    assert herald.presence(user)["connections"] == 3
    with ThreadPoolExecutor(30) as threads:
        eventually(lambda: sum(threads.map(is_open, sockets)) == 3, seconds=30)
    assert herald.report({"users": [user]})["delivered"] == 3


def is_open(socket: Socket) -> bool:
    with suppress(ConnectionClosed):
        socket.connection.send(json.dumps({"action": "ping"}))
        while json.loads(socket.connection.recv(timeout=10))["type"] != "pong":
            pass
        return True
    return False


def test_a_connection_whose_disconnect_was_lost_does_not_count_against_the_limit(
    herald_with: Start, user: str
) -> None:
    herald = herald_with(HERALD_MAX_CONNECTIONS_PER_USER="1")
    left = herald.connect(user)
    [item] = herald.connections(user)
    found = herald.tables.get_item(TableName="herald-users", Key={"user": {"S": f"/{user}"}})
    left.connection.close()
    eventually(lambda: not herald.connections(user))
    # Restore the items, as if `$disconnect` had been lost a minute ago.
    for name in ("connectedAt", "timestamp"):
        item[name] = {"N": str(int(time.time() * 1000) - 60_000)}
    rest = item["reach"]["S"].partition(" ")[2]
    item["reach"] = {"S": f"{item['connectedAt']['N']} {rest}"}
    found["Item"][f"@{item['connectionId']['S']}"] = item["reach"]
    herald.tables.put_item(TableName="herald-connections", Item=item)
    herald.tables.put_item(TableName="herald-users", Item=found["Item"])

    herald.connect(user)
    assert herald.presence(user)["connections"] == 1
    assert herald.refusal(f"?token={token(user)}") == 429
