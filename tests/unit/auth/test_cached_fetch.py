"""Refreshing a cached value, and serving the last good one while the source is down or slow."""

import threading
import time
from collections.abc import Iterator

import pytest

from chalicelib.auth.cached_fetch import (
    FETCH_BURST,
    FETCH_INTERVAL_SECONDS,
    MAX_STALE_SECONDS,
    REFRESH_SECONDS,
    CachedFetch,
    FetchError,
    FetchWaits,
)
from chalicelib.errors import Unavailable
from tests.support.clients import eventually


class Source:
    """A source whose value is the number of the fetch; fetches fail while it is `down`."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.calls = 0
        self.down = False
        self.cached: CachedFetch[int] = CachedFetch(
            "the value", self.fetch, lambda: self.now, FetchWaits(with_value=30.0)
        )

    def fetch(self) -> int:
        self.calls += 1
        if self.down:
            raise FetchError("it is down")
        return self.calls


@pytest.fixture
def source() -> Source:
    return Source()


def test_a_value_is_fetched_when_first_needed_and_again_as_it_ages(source: Source) -> None:
    assert source.calls == 0
    assert [source.cached.get() for _ in range(5)] == [1] * 5
    source.now += REFRESH_SECONDS
    assert source.cached.get() == 1
    source.now += 1
    assert [source.cached.get() for _ in range(5)] == [2] * 5
    assert source.calls == 2


def test_fetches_are_rate_limited(source: Source) -> None:
    source.cached.get()
    refreshed = [source.cached.refresh() for _ in range(100)]
    assert refreshed == [2, 3] + [None] * 98
    assert source.calls == FETCH_BURST
    for seconds in range(1, 601):
        source.now += 1
        source.cached.refresh()
        assert source.calls <= FETCH_BURST + seconds / FETCH_INTERVAL_SECONDS
    assert source.calls == FETCH_BURST + 600 / FETCH_INTERVAL_SECONDS
    assert source.cached.get() == source.calls


def test_the_last_good_value_serves_for_a_day_while_the_source_is_down(source: Source) -> None:
    source.cached.get()
    source.down = True
    assert source.cached.refresh() is None
    while source.now <= 1_000_000 + MAX_STALE_SECONDS:
        assert source.cached.get() == 1
        source.now += 600
    with pytest.raises(Unavailable, match="the value can't be fetched") as unavailable:
        source.cached.get()
    assert unavailable.value.retry_after
    source.down = False
    source.now += FETCH_INTERVAL_SECONDS
    assert source.cached.get() == source.calls


def test_a_value_that_was_never_fetched_is_unavailable(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.down = True
    with caplog.at_level("ERROR", "herald"):
        for _ in range(10):
            with pytest.raises(Unavailable):
                source.cached.get()
    assert source.calls == FETCH_BURST
    assert caplog.messages[0] == "could not fetch the value: it is down; nothing is cached"


# --- A source that answers slowly, or never


class SlowSource:
    """A source whose n-th fetch waits for `answers[n]`; its value is n."""

    def __init__(self, waits: FetchWaits) -> None:
        self.now = 1_000_000.0
        self.answers: list[threading.Event] = []
        self.hold = False
        self.cached: CachedFetch[int] = CachedFetch(
            "the value", self.fetch, lambda: self.now, waits
        )

    def fetch(self) -> int:
        number = len(self.answers)
        self.answers.append(threading.Event())
        if not self.hold:
            self.answers[number].set()
        self.answers[number].wait()
        return number


@pytest.fixture
def slow() -> Iterator[SlowSource]:
    source = SlowSource(FetchWaits(without_value=30.0, with_value=0.0))
    yield source
    for answer in source.answers:
        answer.set()


@pytest.fixture
def silent() -> Iterator[SlowSource]:
    source = SlowSource(FetchWaits(without_value=0.05, with_value=0.0))
    yield source
    for answer in source.answers:
        answer.set()


def test_an_aged_value_serves_while_a_slow_source_is_asked(slow: SlowSource) -> None:
    """No caller waits for the new value. It serves from the time that it is there."""
    assert slow.cached.get() == 0
    slow.hold = True
    slow.now += REFRESH_SECONDS + 1
    assert [slow.cached.get() for _ in range(5)] == [0] * 5
    eventually(lambda: len(slow.answers) == 2)
    slow.answers[1].set()
    eventually(lambda: slow.cached.get() == 1)
    assert len(slow.answers) == 2


def test_a_value_has_the_age_of_the_begin_of_its_fetch(slow: SlowSource) -> None:
    """Lambda may have frozen the fetch for hours before its end."""
    slow.cached.get()
    slow.hold = True
    slow.now += REFRESH_SECONDS + 1
    slow.cached.get()
    eventually(lambda: len(slow.answers) == 2)
    slow.now += 5
    slow.answers[1].set()
    slow.hold = False
    assert slow.cached.refresh() == 1
    slow.now += REFRESH_SECONDS - 4
    eventually(lambda: slow.cached.get() == 2)


def test_a_fetch_that_was_frozen_may_end_before_another_begins() -> None:
    """Lambda freezes it after the invocation that began it; the next one may be a minute later."""
    calls: list[float] = []
    now = [1_000_000.0]

    def fetch() -> float:
        begun_at = now[0]
        calls.append(begun_at)
        while len(calls) > 1 and now[0] == begun_at:
            time.sleep(0.001)
        return begun_at

    waits = FetchWaits(without_value=30.0, with_value=1.0)
    cached: CachedFetch[float] = CachedFetch("the value", fetch, lambda: now[0], waits)
    first = cached.get()
    now[0] += REFRESH_SECONDS + 1
    assert cached.get() == first
    now[0] += 60
    assert cached.get() == calls[1]
    assert len(calls) == 2


def test_a_fetch_that_takes_too_long_is_abandoned_and_begun_anew(
    slow: SlowSource, caplog: pytest.LogCaptureFixture
) -> None:
    slow.cached.get()
    slow.hold = True
    slow.now += REFRESH_SECONDS + 1
    assert slow.cached.get() == 0
    eventually(lambda: len(slow.answers) == 2)
    slow.hold = False
    slow.now += 31
    with caplog.at_level("ERROR", "herald"):
        eventually(lambda: slow.cached.get() == 2)
    assert caplog.messages == [
        "could not fetch the value: no answer within 30.0 s; cached 632 s ago"
    ]
    slow.answers[1].set()
    assert slow.cached.get() == 2


def test_a_silent_source_keeps_a_caller_without_a_value_for_a_bounded_time(
    silent: SlowSource,
) -> None:
    silent.hold = True
    for _ in range(10):
        with pytest.raises(Unavailable):
            silent.cached.get()
    eventually(lambda: len(silent.answers) == FETCH_BURST)


def test_a_silent_source_leaves_the_good_value_in_place() -> None:
    source = SlowSource(FetchWaits(without_value=1.0, with_value=0.0))
    assert source.cached.get() == 0
    source.hold = True
    assert source.cached.refresh() is None
    assert source.cached.get() == 0
    source.answers[-1].set()


def test_an_unforeseen_error_of_a_fetch_is_logged_and_leaves_the_good_value(
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = iter([1])
    cached: CachedFetch[int] = CachedFetch("the value", lambda: next(values))
    assert cached.get() == 1
    with caplog.at_level("ERROR", "herald"):
        assert cached.refresh() is None
    assert caplog.records[0].exc_info is not None
    assert cached.get() == 1
