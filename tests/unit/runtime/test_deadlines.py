import time
from types import SimpleNamespace

import pytest

from chalicelib.aws_limits import ANSWER_RESERVE_SECONDS, INTEGRATION_SECONDS
from chalicelib.runtime.deadlines import Deadline, answer_deadline, work_deadline

NOW = 1000.0


class Clock:
    """The monotonic clock; the test turns it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(time, "monotonic", turned)
    return turned


def context(seconds: float) -> object:
    return SimpleNamespace(get_remaining_time_in_millis=lambda: seconds * 1000)


def test_a_deadline_passes_when_no_time_is_left(clock: Clock) -> None:
    deadline = Deadline.after(5)
    clock.now += 4
    assert (deadline.left(), deadline.passed()) == (1, False)
    clock.now += 1
    assert (deadline.left(), deadline.passed()) == (0, True)


def test_the_time_that_is_left_is_never_negative() -> None:
    assert Deadline.after(-1).left() == 0


def test_a_deadline_moves_by_seconds() -> None:
    assert Deadline.after(5).earlier(2).at == NOW + 3
    assert Deadline.after(5).later(2).at == NOW + 7


@pytest.mark.parametrize(("seconds", "left"), [(2, 2), (8, 5)])
def test_the_sooner_of_two_deadlines_counts(clock: Clock, seconds: float, left: float) -> None:
    deadline = Deadline.after(10)
    clock.now += 5
    assert deadline.within(seconds).left() == left
    assert deadline.left() == 5


def test_work_ends_before_lambda_ends_the_invocation() -> None:
    assert work_deadline(context(60)).left() == 60 - ANSWER_RESERVE_SECONDS
    assert work_deadline(context(1)).at == NOW + 1 - ANSWER_RESERVE_SECONDS


def test_an_answer_is_ready_before_api_gateway_stops_waiting() -> None:
    assert answer_deadline(context(60)).left() == INTEGRATION_SECONDS - ANSWER_RESERVE_SECONDS
    assert answer_deadline(context(5)).left() == 5 - ANSWER_RESERVE_SECONDS
