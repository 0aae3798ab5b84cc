"""Writes to the history keep their pace, leave room for others, and end in time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chalicelib.errors import Unavailable
from chalicelib.store.dynamodb import MAX_BATCH_WRITE
from chalicelib.store.paced_writes import PacedWriter, PricedItem, WriteLimits
from tests.support.world import Inline

LIMITS = WriteLimits()
OTHERS_EACH_SECOND = 100


class Table:
    """A table that takes `capacity` copies a second, and its clock, which only `sleep` turns.

    Others write one copy at a time, evenly; `refused` counts how many of their writes it throttles.
    """

    def __init__(self, capacity: float, call_seconds: float = 0.0) -> None:
        self.now = 100.0
        self.written: list[tuple[float, Any]] = []
        self.calls = 0
        self.others = self.refused = 0
        self._capacity = capacity
        self._call_seconds = call_seconds
        self._room, self._room_at = 0.1 * capacity, self.now
        self._next_other = self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def batch_put(self, table: str, items: Sequence[Any]) -> list[Any]:
        self.calls += 1
        self.now += self._call_seconds
        self._serve_others()
        left = []
        for item in items:
            if self._take(self.now):
                self.written.append((self.now, item))
            else:
                left.append(item)
        return left

    def _serve_others(self) -> None:
        while self._next_other < self.now:
            self.others += 1
            self.refused += not self._take(self._next_other)
            self._next_other += 1 / OTHERS_EACH_SECOND

    def _take(self, at: float) -> bool:
        refilled = self._room + (at - self._room_at) * self._capacity
        self._room, self._room_at = min(0.1 * self._capacity, refilled), at
        if self._room < 1:
            return False
        self._room -= 1
        return True


def items(count: int, copies: int = 1) -> list[PricedItem]:
    return [
        PricedItem({"stream": {"S": "user/a"}, "position": {"S": f"{number:06}"}}, copies)
        for number in range(count)
    ]


def writer(table: Any, limits: WriteLimits = LIMITS) -> PacedWriter:
    return PacedWriter(
        table, "history", writers=Inline(), limits=limits, now=lambda: table.now, sleep=table.sleep
    )


@pytest.mark.parametrize("count", [1, MAX_BATCH_WRITE])
def test_an_ordinary_request_is_written_in_one_call_without_a_pause(count: int) -> None:
    table = Table(capacity=1e6)
    assert writer(table).write(items(count)) == []
    assert (table.calls, table.now) == (1, 100.0)
    assert len(table.written) == count


def test_no_items_take_no_call() -> None:
    table = Table(capacity=0)
    assert writer(table).write([]) == []
    assert table.calls == 0


def test_a_large_request_is_written_at_its_senders_pace() -> None:
    table = Table(capacity=1e6)
    assert writer(table).write(items(10_000)) == []
    seconds = table.now - 100.0
    assert seconds == pytest.approx((10_000 - LIMITS.head_start) / LIMITS.copies_per_second, 0.05)
    for second in range(int(seconds)):
        begin = 100.0 + second
        copies = sum(begin <= at < begin + 1 for at, _ in table.written)
        one_round = LIMITS.copies_per_second * LIMITS.round_seconds
        assert copies <= LIMITS.copies_per_second + LIMITS.head_start + one_round


def test_a_copy_is_a_kilobyte_however_many_items_there_are() -> None:
    small, large = Table(capacity=1e6), Table(capacity=1e6)
    writer(small).write(items(4000))
    writer(large).write(items(100, copies=40))
    assert large.now == pytest.approx(small.now, abs=0.1)


def test_what_does_not_fit_into_the_time_is_returned_and_the_first_is_stored() -> None:
    table = Table(capacity=1e6)
    everything = items(40_000)
    unwritten = writer(table).write(everything)
    assert table.now - 100.0 <= LIMITS.large_seconds
    written = len(table.written)
    assert written == pytest.approx(LIMITS.large_seconds * LIMITS.copies_per_second, rel=0.05)
    assert unwritten == [priced.item for priced in everything[written:]]


def test_an_ordinary_request_gives_up_soon_when_the_table_throttles() -> None:
    table = Table(capacity=0)
    everything = items(3)
    assert writer(table).write(everything) == [priced.item for priced in everything]
    assert table.now - 100.0 <= LIMITS.small_seconds
    assert table.calls > 2


def test_items_that_are_throttled_for_a_moment_are_written() -> None:
    table = Table(capacity=180)
    assert writer(table).write(items(20)) == []
    assert 1 < table.calls < 20
    assert [item["position"]["S"] for _, item in table.written] == [f"{n:06}" for n in range(20)]


@pytest.mark.parametrize("capacity", [500, 1500])
def test_a_large_request_leaves_room_for_others_in_a_table_that_is_too_small(
    capacity: float,
) -> None:
    table = Table(capacity, call_seconds=0.005)
    unwritten = writer(table).write(items(10_000))
    assert table.now - 100.0 <= LIMITS.large_seconds + 0.1
    assert len(unwritten) + len(table.written) == 10_000
    assert len(table.written) > 0.3 * capacity * LIMITS.large_seconds
    assert table.others > 500
    assert table.refused < 0.2 * table.others


class Broken:
    """A table whose second call fails while the others are still being written."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0
        self.ended = 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def batch_put(self, table: str, items: Sequence[Any]) -> list[Any]:
        self.calls += 1
        if self.calls == 2:
            raise Unavailable("storage is unreachable")
        self.ended += 1
        return []


def test_storage_that_cannot_be_reached_raises_when_every_write_has_ended() -> None:
    broken: Any = Broken()
    with ThreadPoolExecutor(4) as threads:
        paced = PacedWriter(
            broken,
            "history",
            writers=threads,
            limits=LIMITS,
            now=lambda: broken.now,
            sleep=broken.sleep,
        )
        with pytest.raises(Unavailable):
            paced.write(items(100))
        assert (broken.calls, broken.ended) == (4, 3)
