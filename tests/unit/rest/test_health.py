import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from chalicelib.errors import Unavailable
from chalicelib.rest.health import KEPT_SECONDS, HealthCheck


class Storage:
    """Storage that can be down, and a clock."""

    def __init__(self) -> None:
        self.asked = 0
        self.now = 0.0
        self.down = False

    def check(self) -> None:
        self.asked += 1
        if self.down:
            raise Unavailable("storage is unreachable", retry_after=1.5)

    def health(self) -> HealthCheck:
        return HealthCheck(self.check, clock=lambda: self.now)


def test_storage_is_asked_once_in_five_seconds() -> None:
    storage = Storage()
    health = storage.health()
    for moment in (0.0, 1.0, KEPT_SECONDS - 0.1):
        storage.now = moment
        health.require()
    assert storage.asked == 1
    storage.now = KEPT_SECONDS
    health.require()
    assert storage.asked == 2


def test_storage_that_is_down_is_not_asked_more_often() -> None:
    storage = Storage()
    storage.down = True
    health = storage.health()
    for _ in range(3):
        with pytest.raises(Unavailable, match="storage is unreachable") as unavailable:
            health.require()
        assert unavailable.value.retry_after == 1.5
    assert storage.asked == 1
    storage.down, storage.now = False, KEPT_SECONDS
    health.require()
    assert storage.asked == 2


def test_an_answer_is_kept_from_when_it_came() -> None:
    storage = Storage()

    def slow() -> None:
        storage.check()
        storage.now += 3.0

    health = HealthCheck(slow, clock=lambda: storage.now)
    health.require()
    storage.now += KEPT_SECONDS - 0.1
    health.require()
    assert storage.asked == 1


def test_callers_that_ask_meanwhile_get_the_same_answer() -> None:
    storage = Storage()
    go = threading.Event()

    def waiting() -> None:
        go.wait()
        storage.check()

    health = HealthCheck(waiting)
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(health.require) for _ in range(5)]
        go.set()
        for answer in answers:
            answer.result()
    assert storage.asked == 1


def test_a_bug_in_the_check_is_not_kept() -> None:
    asked = 0

    def fail() -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError

    health = HealthCheck(fail)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            health.require()
    assert asked == 2
