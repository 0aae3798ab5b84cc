"""Retries of requests: the policy, and the queue of tasks that wait for their next try."""

import heapq
import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

from chalicelib.delivery.congestion import Task


class RetryPolicy(NamedTuple):
    """The tries of a request, and the pauses between them: exponential, with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    tries: int = 4
    tries_throttled: int = 8
    """When throttled, since the endpoint works and only asks for patience."""

    backoff_seconds: float = 0.1
    max_backoff_seconds: float = 2.0
    jitter: Callable[[float, float], float] = random.uniform

    def pause(self, tries: int) -> float:
        """Return how many seconds to wait after this many tries.

        The random pause keeps tasks that failed together from coming back together.
        """
        return self.jitter(0, min(self.max_backoff_seconds, self.backoff_seconds * 2**tries))


DEFAULT_POLICY = RetryPolicy()


class RetryQueue:
    """The tasks that wait for their next try."""

    def __init__(self, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        self._policy = policy
        self._heap: list[tuple[float, int, Task]] = []
        self._order = count()  # a tie-breaker, so that the heap never compares tasks

    def add(self, task: Task, now: float, *, throttled: bool) -> bool:
        """Schedule the next try of a task; return False when all its tries are used up."""
        policy = self._policy
        if task.tries >= (policy.tries_throttled if throttled else policy.tries):
            return False
        due = now + policy.pause(task.tries)
        heapq.heappush(self._heap, (due, next(self._order), task))
        return True

    def take_due(self, now: float) -> Iterator[Task]:
        """Remove and yield the tasks whose pause is over."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]

    def next_due(self) -> float:
        """Return when the next task is due, on the monotonic clock; or infinity."""
        return self._heap[0][0] if self._heap else float("inf")

    def take_all(self) -> list[Task]:
        """Remove and return every task."""
        tasks = [task for _, _, task in self._heap]
        self._heap.clear()
        return tasks
