"""Each thing that Herald does, with each of its calls spoiled in each way."""

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


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with scene() as one:
        yield one


@pytest.fixture
def stage(shared: Scene) -> Scene:
    shared.begin_anew()
    return shared


# --- What Herald does; each says what must hold whatever happens


def connect(stage: Scene) -> None:
    with stage.spoiled():
        status = stage.try_to_connect("bob", groups=["team"])
    assert status in stage.allowed(101, 503)


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
    """One is silent, one's end was not told, one's token is over by then."""
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
        stage.let_claims_run_out()
        answer = stage.post(body, key)
    assert answer.status_code in (200, 202)
    [report] = answer.json()["messages"]
    assert_honest(stage, report, users)


def assert_honest(stage: Scene, report: Any, users: list[str]) -> None:
    """Each recipient is in the report; whoever it says has the message has it, and who has not
    gets it when they come back."""
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
ONE_OF = 11  # faults is tried where not all are asked for, each of them somewhere; of deaths all

Act = Callable[[Scene], None]

CALLS: dict[Act, int] = {
    connect: 1,
    disconnect: 1,
    join: 4,
    send: 5,
    resume: 7,
    post: 7,
    fan_out: 18,
    sweep: 36,
}
"""How many calls each makes when nothing goes wrong. A sweep's come in any order, since it looks at
its shards so."""

ONCE_MORE = (answer_lost, cut_short, too_late, answered_too_late)
"""Faults after which a second try may do again what the first has done."""


def cases() -> list[Any]:
    """Each call fails, and its second try too; or is mended by that; or ends its caller."""
    plans = [
        (act, Plan(fault, call, count))
        for act, calls in CALLS.items()
        for call in range(calls)
        for fault, count in (
            *((fault, 2) for fault in FAULTS),
            *((fault, 1) for fault in ONCE_MORE),
        )
    ]
    deaths = [
        (act, Plan(death, call, 1))
        for act, calls in CALLS.items()
        for call in range(calls)
        for death in DEATHS
    ]
    return [
        pytest.param(
            act, plan, id=f"{act.__name__}-{plan.first}-{plan.fault.__name__}-{plan.count}"
        )
        for act, plan in [*plans[:: 1 if ALL else ONE_OF], *deaths]
    ]


@pytest.mark.parametrize("act", CALLS, ids=lambda act: act.__name__)
def test_these_are_all_calls(stage: Scene, act: Act) -> None:
    stage.plan = Plan(untouched, 0, 1000)
    act(stage)
    assert len(stage.calls) == CALLS[act], stage.calls
    stage.assert_true()
    stage.assert_reachable()


@pytest.mark.parametrize(("act", "plan"), cases())
def test_whatever_happens_to_a_call(stage: Scene, act: Act, plan: Plan) -> None:
    stage.plan = plan
    act(stage)
    assert stage.spoiler.spoiled
    stage.assert_true()
    stage.assert_reachable()
