"""The pauses, tries and order of retries."""

import math

from chalicelib.delivery.congestion import Task
from chalicelib.delivery.retries import RetryPolicy, RetryQueue
from tests.unit.delivery.parcels import parcels
from tests.unit.delivery.test_congestion import queue_of


def task(tries: int = 1) -> Task:
    [parcel] = parcels("http://127.0.0.1/prod", ["c="])
    return Task(parcel, queue_of(0), tries=tries)


def without_jitter(low: float, high: float) -> float:
    return high


def test_pauses_double_up_to_a_maximum() -> None:
    """https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/"""
    policy = RetryPolicy(jitter=without_jitter)
    assert [policy.pause(tries) for tries in range(1, 8)] == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_jitter_spreads_a_pause_from_zero_to_its_length() -> None:
    pauses = [RetryPolicy().pause(3) for _ in range(1000)]
    assert 0 <= min(pauses) < 0.1
    assert 0.7 < max(pauses) <= 0.8


def test_a_throttled_task_has_more_tries_than_another() -> None:
    queue = RetryQueue(RetryPolicy(tries=4, tries_throttled=8))
    for throttled, most in ((False, 4), (True, 8)):
        added = [queue.add(task(tries), 0.0, throttled=throttled) for tries in range(1, 10)]
        assert added == [tries < most for tries in range(1, 10)]


def test_tasks_come_back_when_they_are_due_the_earliest_first() -> None:
    queue = RetryQueue(RetryPolicy(jitter=without_jitter))
    late, early = task(tries=2), task(tries=1)
    assert queue.next_due() == math.inf
    for one in (late, early):
        assert queue.add(one, 10.0, throttled=False)
    assert queue.next_due() == 10.2
    assert list(queue.take_due(10.1)) == []
    assert list(queue.take_due(10.2)) == [early]
    assert list(queue.take_due(11.0)) == [late]


def test_take_all_empties_the_queue() -> None:
    queue = RetryQueue()
    tasks = [task(), task()]
    for one in tasks:
        queue.add(one, 0.0, throttled=False)
    assert sorted(map(id, queue.take_all())) == sorted(map(id, tasks))
    assert queue.next_due() == math.inf
