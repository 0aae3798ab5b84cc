"""Refreshing a cached value, and serving the last good one while the source is down."""

import pytest

from chalicelib.auth.cached_fetch import (
    FETCH_BURST,
    FETCH_INTERVAL_SECONDS,
    MAX_STALE_SECONDS,
    REFRESH_SECONDS,
    CachedFetch,
    FetchError,
)
from chalicelib.errors import Unavailable


class Source:
    """A source whose value is the number of the fetch; fetches fail while it is `down`."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.calls = 0
        self.down = False
        self.cached: CachedFetch[int] = CachedFetch("the value", self.fetch, lambda: self.now)

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
