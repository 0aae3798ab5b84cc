"""Rates and quotas, against their definitions, and over both of the emulators of DynamoDB."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.auth.principal import Principal
from chalicelib.errors import Contended, QuotaExceeded, RateLimited, Unavailable
from chalicelib.store import rate_limits as limits
from chalicelib.store.dynamodb import Store
from chalicelib.store.expressions import Clause
from chalicelib.store.rate_limits import DAY_MS, USERS_REMEMBERED, Limiter, Meter, Rate, Usage
from chalicelib.store.users import Users
from tests.support.tables import LATER, NOW, TABLES, Counted, meter

MIDNIGHT = NOW - NOW % DAY_MS


def users_with(client: Any, rate: Rate, quota: int = 0) -> Users:
    return Users(
        Store(client, TABLES),
        messages=meter("messageDue", rate, quota),
        resumes=meter("resumeDue"),
    )


def allowed(users: Users, user: str, now: int, messages: int = 1) -> bool:
    try:
        users.charge(Principal(user, expires_at=LATER), now, messages)
    except (RateLimited, QuotaExceeded):
        return False
    return True


def written(_: Sequence[Clause]) -> None:
    """A write that always succeeds."""


@given(
    burst=st.integers(1, 5),
    per_second=st.sampled_from([0.5, 1, 3, 20]),
    gaps=st.lists(st.integers(0, 1500), max_size=60),
)
def test_no_more_than_the_burst_and_the_rate_pass_and_no_less(
    burst: int, per_second: float, gaps: list[int]
) -> None:
    """A leaky bucket that holds `burst`, as GCRA is often explained: both let the same pass."""
    counted = meter("due", Rate.per_second(per_second, burst))
    now, level, last = NOW, 0.0, NOW
    for gap in gaps:
        now += gap
        level = max(0.0, level - (now - last) * per_second / 1000)
        last = now
        try:
            counted.charge("user", now, written)
            passed = True
        except RateLimited as limited:
            assert limited.retry_after is not None
            assert 0 < limited.retry_after <= 1 / per_second + 1e-6
            passed = False
        if abs(level + 1 - burst) > 1e-4:  # at the edge the interval's rounding decides
            assert passed == (level + 1 <= burst)
        level += passed


def test_who_waits_as_long_as_told_is_served() -> None:
    counted = meter("due", Rate.per_second(3, 1))
    counted.charge("user", NOW, written)
    with pytest.raises(RateLimited) as limited:
        counted.charge("user", NOW + 1, written)
    assert limited.value.retry_after is not None
    counted.charge("user", NOW + 1 + int(limited.value.retry_after * 1000) + 1, written)


def test_the_rate_holds_over_environments_and_threads(ministack: Any, user: str) -> None:
    rate = Rate.per_second(0.001, 20)
    environments = [users_with(ministack, rate) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: allowed(environments[n % 8], user, NOW), range(80)))
    assert sum(results) == 20


def test_charging_is_one_call_idle_and_busy(dynamodb: Any, user: str) -> None:
    client: Any = Counted(dynamodb)
    users = users_with(client, Rate.per_second(1, 5), quota=100)
    assert all(allowed(users, user, NOW + moment) for moment in (0, 1, 2, 50_000, 50_001))
    assert client.calls == ["update_item"] * 5


def test_the_quota_counts_messages_and_ends_with_the_day(dynamodb: Any, user: str) -> None:
    users = users_with(dynamodb, Rate.per_second(1000, 1000), quota=10)
    elsewhere = users_with(dynamodb, Rate.per_second(1000, 1000), quota=10)
    morning, evening = MIDNIGHT + 1000, MIDNIGHT + DAY_MS - 5000
    assert allowed(users, user, morning, 6)
    assert not allowed(elsewhere, user, morning + 100, 5)
    assert allowed(users, user, morning + 200, 4)
    assert allowed(users, user, morning + 300, 0)  # sends nothing
    with pytest.raises(QuotaExceeded, match="10 messages, of which 10") as exceeded:
        users.charge(Principal(user, expires_at=LATER), evening, 1)
    assert exceeded.value.retry_after == pytest.approx(5)
    assert allowed(elsewhere, user, MIDNIGHT + DAY_MS, 10)
    assert not allowed(users, user, MIDNIGHT + DAY_MS + 1, 1)


def test_what_the_quota_refuses_takes_nothing_of_the_rate(dynamodb: Any, user: str) -> None:
    users = users_with(dynamodb, Rate.per_second(0.001, 2), quota=1)
    assert not allowed(users, user, NOW, 2)
    assert allowed(users, user, NOW, 1)
    assert allowed(users, user, NOW, 0)
    assert not allowed(users, user, NOW, 0)


def test_only_so_many_users_are_remembered() -> None:
    counted = Meter(Limiter("due", Rate.per_second(1, 1)))
    for number in range(USERS_REMEMBERED + 5):
        counted.charge(f"user-{number}", NOW, written)
    assert len(counted._known) == USERS_REMEMBERED


def failing(error: Exception) -> Any:
    def write(_: Sequence[Clause]) -> None:
        raise error

    return write


def test_it_fails_closed_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    closed = Meter(Limiter("due", Rate.per_second(1, 1)))
    with caplog.at_level("INFO", "herald"), pytest.raises(Unavailable):
        closed.charge("u", NOW, failing(Unavailable("storage is unreachable")))
    assert caplog.messages == ["refused, since the limiter fails closed: storage is unreachable"]


def test_or_open_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    opened = Meter(Limiter("due", Rate.per_second(1, 1)), fails_open=True)
    with caplog.at_level("INFO", "herald"):
        for _ in range(3):
            opened.charge("u", NOW, failing(Unavailable("storage is unreachable")))
    assert set(caplog.messages) == {
        "not counted, since the limiter fails open: storage is unreachable"
    }
    opened.charge("u", NOW, written)
    with pytest.raises(RateLimited):
        opened.charge("u", NOW, written)


@pytest.mark.parametrize("fails_open", [True, False])
def test_but_asking_for_too_much_at_once_opens_nothing(fails_open: bool) -> None:
    """Or whoever floods would open the limiter that is to stop them."""
    limiter = Meter(Limiter("due", Rate.per_second(1, 1)), fails_open=fails_open)
    with pytest.raises(Contended):
        limiter.charge("u", NOW, failing(Contended("too much at once")))
    with pytest.raises(Contended):
        limiter.charge("u", NOW, lambda _: {})


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (60, Rate(1_000_000, 60)),
        (0.5, Rate(120_000_000, 1)),
        (1.5, Rate(40_000_000, 1)),
        (100_000_000, Rate(1, 100_000_000)),
    ],
)
def test_a_minutes_requests_may_come_at_once(rate: float, expected: Rate) -> None:
    assert Rate.per_minute(rate) == expected
    assert Rate.per_second(1e9, 3) == Rate(1, 3)


def test_the_quota_holds_over_environments_that_know_too_little(dynamodb: Any, user: str) -> None:
    """One believes what it saw; what others used meanwhile is in the item."""
    rate = Rate.per_second(1000, 1000)
    one, other = users_with(dynamodb, rate, quota=10), users_with(dynamodb, rate, quota=10)
    assert allowed(one, user, NOW, 2)
    assert allowed(other, user, NOW + 1, 5)
    assert not allowed(one, user, NOW + 2, 4)
    assert allowed(one, user, NOW + 3, 3)
    assert not allowed(other, user, NOW + 4, 1)


def test_the_first_moment_of_a_day_is_of_that_day(dynamodb: Any, user: str) -> None:
    users = users_with(dynamodb, Rate.per_second(1000, 1000), quota=2)
    assert allowed(users, user, MIDNIGHT - 1, 2)
    assert not allowed(users, user, MIDNIGHT - 1, 1)
    assert allowed(users, user, MIDNIGHT, 2)
    assert not allowed(users, user, MIDNIGHT, 1)


def test_what_will_be_refused_is_foreseen_as_far_as_is_remembered() -> None:
    counted = Meter(Limiter("due", Rate.per_second(1, 2)))
    counted.check("user", NOW)
    for _ in range(2):
        counted.charge("user", NOW, written)
    with pytest.raises(RateLimited) as limited:
        counted.check("user", NOW)
    assert (limited.value.detail, limited.value.retry_after) == ("too many requests", 1.0)
    counted.check("user", NOW + 1000)
    counted.check("other", NOW)


def test_usage_is_nothing_where_nothing_is_said_and_kept_where_nothing_is_counted() -> None:
    limiter = Limiter("due", Rate.per_second(1, 1))
    assert limiter.usage({}) == Usage(0, 0)
    assert limiter.charge(Usage(0, 7), NOW, 5)[1] == Usage((NOW + 1000) * 1000, 7)


def test_what_sends_nothing_counts_nothing_and_without_a_quota_nothing_does() -> None:
    rate = Rate.per_second(1, 9)
    Meter(Limiter("due", rate)).charge("user", NOW, written, 1000)
    counted = Meter(Limiter("due", rate, 1))
    counted.charge("user", NOW, written)
    counted.charge("user", NOW, written, 1)
    with pytest.raises(QuotaExceeded):
        counted.charge("user", NOW, written, 1)
    counted.check("user", NOW)  # it may be a request that sends nothing


def test_it_is_the_oldest_who_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "USERS_REMEMBERED", 2)
    counted = Meter(Limiter("due", Rate.per_second(1, 1)))
    for user in ("first", "second", "third"):
        counted.charge(user, NOW, written)
    counted.check("first", NOW)
    for user in ("second", "third"):
        with pytest.raises(RateLimited):
            counted.check(user, NOW)


def test_a_user_whose_item_never_rests_is_refused_for_now() -> None:
    """Each time, another environment was faster; and what it did is remembered for this user."""
    dues = iter(range(NOW * 1000 + 1, NOW * 1000 + 1000))
    counted = Meter(Limiter("due", Rate.per_second(1, 5)))
    with pytest.raises(Contended) as contended:
        counted.charge("user", NOW, lambda _: {"due": {"N": str(next(dues))}})
    assert contended.value.detail == "the user asks for too much at once"
    assert contended.value.retry_after == 1.0
    assert set(counted._known) == {"user"}
