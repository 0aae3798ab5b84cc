import time
from types import SimpleNamespace

import pytest

from chalicelib.aws_limits import ANSWER_RESERVE_SECONDS, INTEGRATION_SECONDS
from chalicelib.runtime.deadlines import answer_deadline, work_deadline

NOW = 1000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: NOW)


def context(seconds: float) -> object:
    return SimpleNamespace(get_remaining_time_in_millis=lambda: seconds * 1000)


def test_work_ends_before_lambda_ends_the_invocation() -> None:
    assert work_deadline(context(60)) == NOW + 60 - ANSWER_RESERVE_SECONDS
    assert work_deadline(context(1)) == NOW + 1 - ANSWER_RESERVE_SECONDS


def test_an_answer_is_ready_before_api_gateway_stops_waiting() -> None:
    assert answer_deadline(context(60)) == NOW + INTEGRATION_SECONDS - ANSWER_RESERVE_SECONDS
    assert answer_deadline(context(5)) == work_deadline(context(5))
