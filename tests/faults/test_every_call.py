"""Each operation of Herald, with each fault in each of its calls."""

import os
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.faults.scene import EARLIEST, Scene, scene
from tests.faults.spoiler import (
    DEATHS,
    FAULTS,
    Plan,
    answer_lost,
    answered_too_late,
    cut_short,
    too_late,
    untouched,
)
from tests.support.clients import eventually


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with scene() as one:
        yield one


@pytest.fixture
def stage(shared: Scene) -> Scene:
    shared.begin_anew()
    return shared


# --- The operations; each asserts what must hold whatever happens


def connect(stage: Scene) -> None:
    with stage.spoiled():
        status = stage.try_to_connect("bob", groups=["team"])
    assert status in stage.allowed(101, 503)
    if status == 503:  # it leaves nothing behind, even before a sweep
        eventually(lambda: not stage.client.connections("bob", stage.tenant))


def disconnect(stage: Scene) -> None:
    stage.connect("bob", groups=["team"])
    with stage.spoiled():
        stage.leave("bob")


def join(stage: Scene) -> None:
    stage.connect("bob", groups=["team*"])
    with stage.spoiled():
        answer = stage.ask("bob", action="join", group="team")
    if answer.get("type") == "joined":
        assert stage.report({"groups": ["team"]})["delivered"] == 1
    else:
        stage.assert_says_no(answer)


def heartbeat(stage: Scene) -> None:
    stage.connect("bob")
    with stage.spoiled():
        answer = stage.ask("bob", action="heartbeat")
    if answer.get("type") != "heartbeat":
        stage.assert_says_no(answer)


def send(stage: Scene) -> None:
    stage.connect("alice")
    stage.connect("bob")
    with stage.spoiled():
        answer = stage.ask("alice", action="send", to={"users": ["bob"]}, data=1)
    if answer.get("type") == "ack":
        assert_honest(stage, answer, ["bob"])
    else:
        stage.assert_says_no(answer)


def resume(stage: Scene) -> None:
    stage.connect("bob")
    report = stage.report({"users": ["bob"]})
    with stage.spoiled():
        answer = stage.ask("bob", action="resume", after=EARLIEST)
    if answer.get("type") != "resumed":
        stage.assert_says_no(answer)
    assert report["id"] in stage.resumed("bob")


def post(stage: Scene) -> None:
    stage.connect("bob")
    stage.connect("carol")
    post_to(stage, ["bob", "carol"])


def fan_out(stage: Scene) -> None:
    for user in ("bob", "carol", "dave"):
        stage.connect(user)
    post_to(stage, ["bob", "carol", "dave"])


def sweep(stage: Scene) -> None:
    """Sweep an idle connection, a dead one, and one whose token has expired."""
    stage.connect("bob", groups=["team"])
    stage.connect("carol", groups=["team"])
    stage.lose("carol")
    stage.connect("dave", lives=60)
    with stage.spoiled():
        stage.later.sweep()
    stage.sockets["dave"] = []


def post_to(stage: Scene, users: list[str]) -> None:
    body = {"to": {"users": users}, "data": 1}
    key = str(uuid4())
    with stage.spoiled():
        answer = stage.post(body, key)
    assert answer.status_code in stage.allowed(200, 202, 503)
    if answer.status_code == 503 and not stage.spoiler.spoiled[0].startswith("SendMessage"):
        sent = [report["delivered"] for report in answer.json().get("messages", [])]
        assert sum(bool(stage.received(user)) for user in users) <= sum(sent)
    if answer.status_code >= 500:
        answer = stage.post(body, key)
    if answer.status_code == 409:
        stage.expire_claims()
        answer = stage.post(body, key)
    assert answer.status_code in (200, 202)
    [report] = answer.json()["messages"]
    assert_honest(stage, report, users)


def assert_honest(stage: Scene, report: Any, users: list[str]) -> None:
    """Assert that a report tells the truth.

    It must count each recipient. Each one counted as delivered must have the message, and the
    others must get it when they reconnect.
    """
    if report.get("queued"):
        report = stage.progress(report["id"])
    counts = [report[result] for result in ("delivered", "gone", "stale", "rejected")]
    assert report["recipients"] == sum(counts) == len(users)
    named = [entry["userId"] for entry in report["failed"]]
    assert len(named) == len(users) - report["delivered"]
    for user in users:
        if report["id"] not in stage.received(user):
            assert user in named
            assert report["id"] in stage.resumed(user)


ALL = os.environ.get("FAULTS") == "all"
ONE_IN = 11  # of the faults is tried by default, each kind somewhere; all kills are tried

Operation = Callable[[Scene], None]

CALLS: dict[Operation, int] = {
    connect: 3,
    disconnect: 5,
    join: 4,
    heartbeat: 2,
    send: 5,
    resume: 5,
    post: 7,
    fan_out: 17,
    sweep: 40,
}
"""The number of calls that each operation makes without a fault. A sweep makes its calls in any
order, because its shards run in parallel."""

AT_MOST: dict[Operation, int] = {sweep: 44}
"""The most calls, where they depend on chance. The `$disconnect` of the connection that the sweep
closes makes one if the sweep has removed it by then, and else four; and the sweep reads the users
of its two silent connections once, or twice if they are in different shards."""

REPEATABLE = (answer_lost, cut_short, too_late, answered_too_late)
"""Faults after which a second try may repeat what the first one did."""


def cases() -> list[Any]:
    """Return the cases: a call fails twice, or fails once, or its caller is killed."""
    plans = [
        (operation, Plan(fault, call, count))
        for operation, calls in CALLS.items()
        for call in range(calls)
        for fault, count in (
            *((fault, 2) for fault in FAULTS),
            *((fault, 1) for fault in REPEATABLE),
        )
    ]
    deaths = [
        (operation, Plan(death, call, 1))
        for operation, calls in CALLS.items()
        for call in range(calls)
        for death in DEATHS
    ]
    return [
        pytest.param(
            operation,
            plan,
            id=f"{operation.__name__}-{plan.first}-{plan.fault.__name__}-{plan.count}",
        )
        for operation, plan in [*plans[:: 1 if ALL else ONE_IN], *deaths]
    ]


@pytest.mark.parametrize("operation", CALLS, ids=lambda operation: operation.__name__)
def test_an_operation_makes_its_known_number_of_calls(stage: Scene, operation: Operation) -> None:
    stage.plan = Plan(untouched, 0, 1000)
    operation(stage)
    calls = CALLS[operation]
    assert calls <= len(stage.calls) <= AT_MOST.get(operation, calls), stage.calls
    stage.assert_consistent()
    stage.assert_reachable()


@pytest.mark.parametrize(("operation", "plan"), cases())
def test_herald_is_consistent_after_any_fault_in_any_call(
    stage: Scene, operation: Operation, plan: Plan
) -> None:
    stage.plan = plan
    operation(stage)
    assert stage.spoiler.spoiled
    stage.assert_consistent()
    stage.assert_reachable()
