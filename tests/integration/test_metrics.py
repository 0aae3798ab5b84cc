"""Metrics and log lines, read from the output of a gateway."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.support.clients import SECRET, eventually, token, whole_lines
from tests.support.key_server import KeyPair
from tests.support.process import running
from tests.support.stub import stub

SECONDS = 20.0


def lines(printed: Path) -> list[Any]:
    """Return the JSON objects in the output."""
    return [json.loads(line) for line in whole_lines(printed) if line[:1] == "{"]


def metrics(printed: Path) -> dict[tuple[str, ...], list[float]]:
    """Return the values of each metric, by its name and the value of its dimension, if any."""
    found: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    for entry in lines(printed):
        for directive in entry.get("_aws", {}).get("CloudWatchMetrics", []):
            assert directive["Namespace"] == "Herald"
            assert ["Stage"] in directive["Dimensions"]
            own = [entry[name] for name in directive["Dimensions"][-1] if name != "Stage"]
            for metric in directive["Metrics"]:
                found[metric["Name"], *own] += entry[metric["Name"]]
    return found


def test_the_gateway_prints_every_metric_of_a_scenario(checkout: Path, tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    settings = {
        "HERALD_JWT_SECRET": SECRET,
        "HERALD_INLINE_RECIPIENTS": "2",
        "HERALD_MAX_CONNECTIONS_PER_USER": "2",
        "HERALD_STAGE": "test",
        "GATEWAY_SCHEDULE_SECONDS": "1",
    }
    with running(checkout, printed, **settings) as herald:
        sockets = [herald.connect(user) for user in ("alice", "bob", "bob")]
        headers = {"Authorization": f"Bearer {token('bob')}"}
        assert herald.refusal(headers=headers) == 429
        assert herald.refusal("?token=nonsense") == 401
        assert herald.report({"users": ["bob"]})["delivered"] == 2
        queued = herald.post({"to": {"all": True}, "data": "hello"})
        assert queued.status_code == 202
        assert sockets[0].messages() == ["hello"]
        assert herald.post({"to": {"users": []}, "data": 1}).status_code == 400
        sockets[0].ask({"action": "send", "to": 5, "data": 1})
        sockets[1].connection.close()

        def done() -> bool:
            found = metrics(printed)
            return ("ConnectionsClosed",) in found and 2 in found.get(("ActiveConnections",), [])

        eventually(done, SECONDS)
        eventually(lambda: len(metrics(printed)["FanoutDuration",]) == 2, SECONDS)
        found = metrics(printed)

    assert sum(found["ConnectionsOpened",]) == 3
    assert sum(found["ConnectionsClosed",]) == 1
    assert 0 < found["ConnectionDuration",][0] < 60_000
    assert sum(found["ConnectionsRejected", "too_many_connections"]) == 1
    assert sum(found["ConnectionsRejected", "unauthorized"]) == 1
    assert sum(found["MessagesAccepted",]) == 2
    assert sum(found["MessagesRejected", "bad_request"]) == 2
    assert sum(found["FanoutQueued",]) == 1
    assert sum(found["Deliveries", "delivered"]) == 5
    assert len(found["DeliveryLatency",]) == 5
    assert all(0 <= latency < 60_000 for latency in found["DeliveryLatency",])
    assert all(10 < memory < 500 for memory in found["MemoryUsed",])
    assert sum(found["ColdStart",]) >= 1
    assert all(entry["Stage"] == "test" for entry in lines(printed) if "_aws" in entry)
    # The worker logs the id of the request that queued the message.
    [message] = queued.json()["messages"]
    [line] = [entry for entry in lines(printed) if entry.get("messageId") == message["id"]]
    assert line["correlation_id"] == queued.headers["x-amzn-RequestId"]


def test_a_failed_delivery_is_counted_and_logged_with_the_requests_id(
    checkout: Path, tmp_path: Path
) -> None:
    printed = tmp_path / "printed"
    with (
        stub() as stubbed,
        running(
            checkout,
            printed,
            HERALD_JWT_SECRET=SECRET,
            HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint,
        ) as herald,
    ):
        for user in ("alice", "bob"):
            herald.connect(user)
        stubbed.behaviours[herald.connection_id("alice")] = ["503", 200]
        refused = herald.connection_id("bob")
        stubbed.behaviours[refused] = ["403"]
        answer = herald.post({"to": {"users": ["alice", "bob"]}, "data": "hello"})
        eventually(lambda: ("ConnectionsClosed",) in metrics(printed))
        found = metrics(printed)
        [line] = [entry for entry in lines(printed) if entry.get("message") == "not delivered"]
    assert sum(found["DeliveryRetries",]) == 1
    assert sum(found["Deliveries", "delivered"]) == 1
    assert sum(found["Deliveries", "rejected"]) == 1
    assert sum(found["ConnectionsClosed",]) == 1
    assert (line["connectionId"], line["reason"]) == (refused, "http_403")
    assert line["correlation_id"] == answer.headers["x-amzn-RequestId"]
    assert line["messageIds"] == [answer.json()["messages"][0]["id"]]


def test_only_an_authorizer_that_lacks_its_keys_counts_as_failed(
    checkout: Path, tmp_path: Path
) -> None:
    """Lambda's own metric counts the exception that refuses a token, too."""
    printed = tmp_path / "printed"
    nobody = "http://127.0.0.1:1/keys"
    settings = {"HERALD_JWT_SECRET": SECRET, "HERALD_JWKS_URL": nobody}
    with running(checkout, printed, **settings) as herald:
        bearer = KeyPair.new("ES256", "a").token()
        for text, status in (("nonsense", 401), (bearer, 500)):
            headers = {"Authorization": f"Bearer {text}"}
            assert herald.http.get("/users/bob", headers=headers).status_code == status
            assert herald.refusal(f"?token={text}") == status
        eventually(lambda: sum(metrics(printed)["AuthorizerErrors",]) == 2)
