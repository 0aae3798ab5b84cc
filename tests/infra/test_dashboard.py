"""The dashboard."""

import json
from typing import Any

from infra.dashboard import dashboard
from infra.stage import TABLES, Stage

DEV = Stage("dev")
METRICS = {
    "ConnectionsOpened", "ConnectionsClosed", "ConnectionsRejected", "ActiveConnections",
    "ConnectionDuration", "MessagesAccepted", "MessagesRejected", "Deliveries", "DeliveryLatency",
    "DeliveryRetries", "FanoutDuration", "FanoutQueued", "MemoryUsed", "ColdStart",
    "AuthorizerErrors",
}  # fmt: skip


def test_the_dashboard_shows_every_metric_of_herald() -> None:
    body: Any = json.loads(dashboard(DEV)["Properties"]["DashboardBody"]["Fn::Sub"])
    shown = {
        metric[1]
        for widget in body["widgets"]
        for metric in widget["properties"]["metrics"]
        if metric[0] == "Herald"
    }
    assert shown == METRICS
    places = [(widget["x"], widget["y"]) for widget in body["widgets"]]
    assert len(places) == len(set(places))


def test_the_dashboard_shows_the_capacity_of_each_table_and_of_nothing_else() -> None:
    body = json.loads(dashboard(DEV)["Properties"]["DashboardBody"]["Fn::Sub"])
    shown = [
        (metric[1], metric[3])
        for widget in body["widgets"]
        for metric in widget["properties"]["metrics"]
        if metric[0] == "AWS/DynamoDB"
    ]
    assert shown == [
        (f"Consumed{kind}CapacityUnits", DEV.named(table))
        for kind in ("Write", "Read")
        for table in TABLES.values()
    ]
