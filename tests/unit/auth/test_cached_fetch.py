"""When what is kept is fetched again, and what serves when it can't be."""

import pytest

from chalicelib.auth.cached_fetch import (
    FETCH_EVERY_SECONDS,
    FETCHES_AT_ONCE,
    FRESH_SECONDS,
    GOOD_SECONDS,
    CachedFetch,
    FetchError,
)
from chalicelib.errors import Unavailable


class Elsewhere:
    """Where the value is: `fetch` has the number of its call, or fails while `down`."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.calls = 0
        self.down = False
        self.kept: CachedFetch[int] = CachedFetch("the value", self.fetch, lambda: self.now)

    def fetch(self) -> int:
        self.calls += 1
        if self.down:
            raise FetchError("it is down")
        return self.calls


@pytest.fixture
def there() -> Elsewhere:
    return Elsewhere()


def test_it_is_fetched_when_it_is_asked_for_and_as_it_ages(there: Elsewhere) -> None:
    assert there.calls == 0
    assert [there.kept.get() for _ in range(5)] == [1] * 5
    there.now += FRESH_SECONDS
    assert there.kept.get() == 1
    there.now += 1
    assert [there.kept.get() for _ in range(5)] == [2] * 5
    assert there.calls == 2


def test_how_often_is_limited_whatever_is_asked(there: Elsewhere) -> None:
    there.kept.get()
    renewed = [there.kept.renew() for _ in range(100)]
    assert renewed == [2, 3] + [None] * 98
    assert there.calls == FETCHES_AT_ONCE
    for seconds in range(1, 601):
        there.now += 1
        there.kept.renew()
        assert there.calls <= FETCHES_AT_ONCE + seconds / FETCH_EVERY_SECONDS
    assert there.calls == FETCHES_AT_ONCE + 600 / FETCH_EVERY_SECONDS
    assert there.kept.get() == there.calls


def test_the_last_known_good_serves_for_a_day(there: Elsewhere) -> None:
    there.kept.get()
    there.down = True
    assert there.kept.renew() is None
    while there.now <= 1_000_000 + GOOD_SECONDS:
        assert there.kept.get() == 1
        there.now += 600
    with pytest.raises(Unavailable, match="the value can't be fetched") as unavailable:
        there.kept.get()
    assert unavailable.value.retry_after
    there.down = False
    there.now += FETCH_EVERY_SECONDS
    assert there.kept.get() == there.calls


def test_what_never_was_is_unavailable(there: Elsewhere, caplog: pytest.LogCaptureFixture) -> None:
    there.down = True
    with caplog.at_level("ERROR", "herald"):
        for _ in range(10):
            with pytest.raises(Unavailable):
                there.kept.get()
    assert there.calls == FETCHES_AT_ONCE
    assert caplog.messages[0] == "could not fetch the value: it is down; none is kept"
