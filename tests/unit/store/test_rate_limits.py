"""Rates and quotas: against their definitions, and over both emulators of DynamoDB."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import Contended, QuotaExceeded, RateLimited, Unavailable
from chalicelib.protocol.cost import Debt
from chalicelib.store.expressions import Clause
from chalicelib.store.rate_limits import (
    CACHED_USERS,
    DAY_MS,
    Rate,
    RateLimit,
    Usage,
    UserRateLimiter,
)
from chalicelib.store.users import Users
from tests.support.tables import LATER, NOW, Counted, limiter, users_of

MIDNIGHT = EpochMs(NOW - NOW % DAY_MS)
ONE_A_SECOND = RateLimit("due", Rate.per_second(1, 1))


def allowed(users: Users, user: str, now: EpochMs, messages: int = 1, units: int = 1) -> bool:
    try:
        users.charge(Principal(user, expires_at=LATER), now, messages, units=units)
    except (RateLimited, QuotaExceeded):
        return False
    return True


def written(_: Sequence[Clause]) -> None:
    """Succeed."""


def failing(error: Exception) -> Any:
    def write(_: Sequence[Clause]) -> None:
        raise error

    return write


# --- The definitions


@given(
    burst=st.integers(1, 5),
    per_second=st.sampled_from([0.5, 1, 3, 20]),
    gaps=st.lists(st.integers(0, 1500), max_size=60),
)
def test_gcra_allows_the_same_requests_as_a_leaky_bucket(
    burst: int, per_second: float, gaps: list[int]
) -> None:
    """GCRA is often explained as a leaky bucket that holds `burst`."""
    gcra = limiter("due", Rate.per_second(per_second, burst))
    now, level, last = NOW, 0.0, NOW
    for gap in gaps:
        now = EpochMs(now + gap)
        level = max(0.0, level - (now - last) * per_second / 1000)
        last = now
        try:
            gcra.charge("user", now, written)
            passed = True
        except RateLimited as limited:
            assert limited.retry_after is not None
            assert 0 < limited.retry_after <= 1 / per_second + 1e-6
            passed = False
        if abs(level + 1 - burst) > 1e-4:  # at the edge the interval's rounding decides
            assert passed == (level + 1 <= burst)
        level += passed


@given(
    burst=st.integers(1, 50),
    per_second=st.sampled_from([0.5, 1, 20]),
    events=st.lists(
        st.tuples(st.integers(0, 3000), st.integers(1, 200), st.booleans()), max_size=60
    ),
)
def test_a_request_passes_if_one_unit_is_left_and_is_paid_in_full(
    burst: int, per_second: float, events: list[tuple[int, int, bool]]
) -> None:
    """A leaky bucket may overflow by what a request weighs, and by debts, which always pass."""
    gcra = limiter("due", Rate.per_second(per_second, burst))
    now, level = NOW, 0.0
    for gap, units, debt in events:
        now = EpochMs(now + gap)
        level = max(0.0, level - gap * per_second / 1000)
        passed = True
        if debt:
            gcra.owe("user", now, written, Debt(units, 0))
        else:
            try:
                gcra.charge("user", now, written, units=units)
            except RateLimited as limited:
                passed = False
                wait = (level + 1 - burst) / per_second
                assert limited.retry_after == pytest.approx(wait, abs=1e-3)
            if abs(level + 1 - burst) > 1e-4:
                assert passed == (level + 1 <= burst)
        level += units * passed


def test_a_request_of_a_hundred_units_is_followed_by_three_seconds_of_refusals() -> None:
    checked = limiter("due", Rate.per_second(20, 40))
    checked.charge("user", NOW, written, units=100)
    with pytest.raises(RateLimited) as limited:
        checked.charge("user", NOW, written)
    assert limited.value.retry_after == pytest.approx(3.05)
    checked.charge("user", EpochMs(NOW + 3050), written)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (60, Rate(1_000_000, 60)),
        (0.5, Rate(120_000_000, 1)),
        (1.5, Rate(40_000_000, 1)),
        (100_000_000, Rate(1, 100_000_000)),
    ],
)
def test_the_requests_of_a_minute_may_come_at_once(rate: float, expected: Rate) -> None:
    assert Rate.per_minute(rate) == expected


def test_an_interval_is_at_least_a_microsecond() -> None:
    assert Rate.per_second(1e9, 3) == Rate(1, 3)


def test_a_user_without_attributes_has_no_usage() -> None:
    assert ONE_A_SECOND.usage({}) == Usage(0, 0)


def test_a_limit_without_a_quota_leaves_the_quotas_attribute_alone() -> None:
    assert ONE_A_SECOND.charge(Usage(0, 7), NOW, quota=5).usage == Usage((NOW + 1000) * 1000, 7)


# --- A limiter


def test_a_retry_after_the_given_time_is_allowed() -> None:
    slow = limiter("due", Rate.per_second(3, 1))
    slow.charge("user", NOW, written)
    with pytest.raises(RateLimited) as limited:
        slow.charge("user", EpochMs(NOW + 1), written)
    assert limited.value.retry_after is not None
    slow.charge("user", EpochMs(NOW + 1 + int(limited.value.retry_after * 1000) + 1), written)


def test_a_limiter_caches_a_limited_number_of_users() -> None:
    cached = UserRateLimiter(ONE_A_SECOND)
    for number in range(CACHED_USERS + 5):
        cached.charge(f"user-{number}", NOW, written)
    assert len(cached._usages) == CACHED_USERS


def test_a_full_cache_forgets_the_user_charged_longest_ago() -> None:
    cached = UserRateLimiter(ONE_A_SECOND, cached_users=2)
    for user in ("first", "second", "third"):
        cached.charge(user, NOW, written)
    cached.check("first", NOW)
    for user in ("second", "third"):
        with pytest.raises(RateLimited):
            cached.check(user, NOW)


def test_a_limiter_that_fails_closed_refuses_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    closed = UserRateLimiter(ONE_A_SECOND)
    with caplog.at_level("INFO", "herald"), pytest.raises(Unavailable):
        closed.charge("u", NOW, failing(Unavailable("storage is unreachable")))
    assert caplog.messages == ["refused, since the limiter fails closed: storage is unreachable"]


def test_a_limiter_that_fails_open_lets_messages_pass_and_logs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    open_limiter = UserRateLimiter(ONE_A_SECOND, fails_open=True)
    with caplog.at_level("INFO", "herald"):
        for _ in range(3):
            open_limiter.charge("u", NOW, failing(Unavailable("storage is unreachable")))
    assert set(caplog.messages) == {
        "not counted, since the limiter fails open: storage is unreachable"
    }
    open_limiter.charge("u", NOW, written)
    with pytest.raises(RateLimited):
        open_limiter.charge("u", NOW, written)


@pytest.mark.parametrize("fails_open", [True, False])
def test_a_flood_does_not_open_a_limiter(fails_open: bool) -> None:
    """A limiter that fails open invites attackers to break it."""
    flooded = UserRateLimiter(ONE_A_SECOND, fails_open=fails_open)
    with pytest.raises(Contended):
        flooded.charge("u", NOW, failing(Contended("too many requests at once")))
    with pytest.raises(Contended):
        flooded.charge("u", NOW, lambda _: {})


def test_a_user_whom_others_charge_all_the_time_is_refused_for_now() -> None:
    """Each time, another environment charged the user first."""
    dues = iter(range(NOW * 1000 + 1, NOW * 1000 + 1000))
    contended = limiter("due", Rate.per_second(1, 5))
    with pytest.raises(Contended) as error:
        contended.charge("user", NOW, lambda _: {"due": {"N": str(next(dues))}})
    assert error.value.detail == "too many requests of this user at once"
    assert error.value.retry_after == 1.0
    assert set(contended._usages) == {"user"}


def test_check_refuses_what_the_cached_usage_would_refuse() -> None:
    checked = limiter("due", Rate.per_second(1, 2))
    checked.check("user", NOW)
    for _ in range(2):
        checked.charge("user", NOW, written)
    with pytest.raises(RateLimited) as limited:
        checked.check("user", NOW)
    assert (limited.value.detail, limited.value.retry_after) == ("too many requests", 1.0)
    checked.check("user", EpochMs(NOW + 1000))
    checked.check("other", NOW)


def test_messages_are_not_counted_without_a_quota() -> None:
    limiter("due", Rate.per_second(1, 9)).charge("user", NOW, written, messages=1000)


def test_a_request_without_messages_does_not_count_towards_the_quota() -> None:
    counted = limiter("due", Rate.per_second(1, 9), 1)
    counted.charge("user", NOW, written)
    counted.charge("user", NOW, written, messages=1)
    with pytest.raises(QuotaExceeded):
        counted.charge("user", NOW, written, messages=1)
    counted.check("user", NOW)  # the request may send nothing


@pytest.mark.parametrize(("messages", "units"), [(60, 1), (1, 60)])
def test_the_quota_counts_messages_or_units_whichever_are_more(messages: int, units: int) -> None:
    for quota, passes in ((100, True), (99, False)):
        counted = limiter("due", Rate.per_second(1000, 1000), quota)
        counted.charge("user", NOW, written, messages=20, units=40)
        if passes:
            counted.charge("user", NOW, written, messages=messages, units=units)
        else:
            with pytest.raises(QuotaExceeded, match="40 of which are used"):
                counted.charge("user", NOW, written, messages=messages, units=units)


def test_a_debt_counts_towards_the_quota_and_may_exceed_it() -> None:
    counted = limiter("due", Rate.per_second(1000, 1000), 10)
    counted.owe("user", NOW, written, Debt(3, 9))
    counted.charge("user", NOW, written, messages=1)
    counted.owe("user", NOW, written, Debt(300, 300))
    with pytest.raises(QuotaExceeded, match="310 of which are used"):
        counted.charge("user", NOW, written, messages=1)
    counted.charge("user", EpochMs(MIDNIGHT + DAY_MS), written, messages=10)


def test_a_debt_that_cannot_be_written_raises_unless_the_limiter_fails_open() -> None:
    down = failing(Unavailable("storage is unreachable"))
    with pytest.raises(Unavailable):
        UserRateLimiter(ONE_A_SECOND).owe("user", NOW, down, Debt(1, 1))
    UserRateLimiter(ONE_A_SECOND, fails_open=True).owe("user", NOW, down, Debt(1, 1))


def test_a_user_owes_the_most_of_what_their_requests_are_owed_for() -> None:
    limit, never = UserRateLimiter(ONE_A_SECOND), failing(AssertionError())
    limit.owe_at_least("user", NOW, written, 100)
    limit.owe_at_least("user", NOW, never, 100)
    limit.owe_at_least("user", NOW, never, 99)
    limit.owe_at_least("user", EpochMs(NOW + 1), written, 100)
    with pytest.raises(RateLimited) as limited:
        limit.check("user", EpochMs(NOW + 1))
    assert limited.value.retry_after == pytest.approx(100)


# --- Over the tables


def test_what_another_environment_is_owed_for_is_not_owed_twice(dynamodb: Any, user: str) -> None:
    clients: list[Any] = [Counted(dynamodb) for _ in range(2)]
    here, there = [users_of(client, Rate.per_second(1, 1)) for client in clients]
    principal = Principal(user, expires_at=LATER)
    here.owe_at_least(principal.key, NOW, 100)
    there.owe_at_least(principal.key, EpochMs(NOW - 1000), 100)
    assert [client.calls for client in clients] == [["update_item"]] * 2
    with pytest.raises(RateLimited) as limited:
        there.check(principal, NOW)
    assert limited.value.retry_after == pytest.approx(100)


def test_a_debt_takes_one_call_and_is_seen_by_the_next_check(dynamodb: Any, user: str) -> None:
    client: Any = Counted(dynamodb)
    users = users_of(client, Rate.per_second(1, 5), quota=1000)
    principal = Principal(user, expires_at=LATER)
    users.charge(principal, NOW, 1)
    users.owe(principal.key, NOW, Debt(10, 10))
    assert client.calls == ["update_item"] * 2
    with pytest.raises(RateLimited) as limited:
        users.check(principal, NOW)
    assert limited.value.retry_after == pytest.approx(11 - 4)
    idle = EpochMs(NOW + 60_000)
    users.owe(principal.key, idle, Debt(10, 10))
    assert client.calls == ["update_item"] * 3
    with pytest.raises(RateLimited) as limited:
        users.check(principal, idle)
    assert limited.value.retry_after == pytest.approx(10 - 4)


def test_debts_and_charges_of_several_environments_add_up(dynamodb: Any, user: str) -> None:
    rate = Rate.per_second(1, 100)
    environments = [users_of(dynamodb, rate, quota=1000) for _ in range(3)]
    principal = Principal(user, expires_at=LATER)
    for users in environments:
        assert allowed(users, user, NOW, 1, units=20)
    for users in environments:
        users.owe(principal.key, NOW, Debt(30, 30))
    for users in environments:
        with pytest.raises(RateLimited) as limited:
            users.charge(principal, NOW, 1)
        assert limited.value.retry_after == pytest.approx(3 * 50 - 99)
    assert allowed(environments[0], user, EpochMs(NOW + 150_000), 850)
    assert not allowed(environments[1], user, EpochMs(NOW + 150_000), 1)


def test_the_rate_holds_across_environments_and_threads(ministack: Any, user: str) -> None:
    rate = Rate.per_second(0.001, 20)
    environments = [users_of(ministack, rate) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: allowed(environments[n % 8], user, NOW), range(80)))
    assert sum(results) == 20


def test_charging_an_idle_or_a_busy_user_takes_one_call(dynamodb: Any, user: str) -> None:
    client: Any = Counted(dynamodb)
    users = users_of(client, Rate.per_second(1, 5), quota=100)
    assert all(allowed(users, user, EpochMs(NOW + moment)) for moment in (0, 1, 2, 50_000, 50_001))
    assert client.calls == ["update_item"] * 5


def test_the_quota_counts_messages_and_ends_with_the_day(dynamodb: Any, user: str) -> None:
    users = users_of(dynamodb, Rate.per_second(1000, 1000), quota=10)
    elsewhere = users_of(dynamodb, Rate.per_second(1000, 1000), quota=10)
    morning, evening = EpochMs(MIDNIGHT + 1000), EpochMs(MIDNIGHT + DAY_MS - 5000)
    assert allowed(users, user, morning, 6)
    assert not allowed(elsewhere, user, EpochMs(morning + 100), 5)
    assert allowed(users, user, EpochMs(morning + 200), 4)
    assert allowed(users, user, EpochMs(morning + 300), 0)  # sends nothing
    with pytest.raises(QuotaExceeded, match="10 messages, 10 of which are used") as exceeded:
        users.charge(Principal(user, expires_at=LATER), evening, 1)
    assert exceeded.value.retry_after == pytest.approx(5)
    assert allowed(elsewhere, user, EpochMs(MIDNIGHT + DAY_MS), 10)
    assert not allowed(users, user, EpochMs(MIDNIGHT + DAY_MS + 1), 1)


def test_a_request_over_the_quota_is_not_charged_to_the_rate(dynamodb: Any, user: str) -> None:
    users = users_of(dynamodb, Rate.per_second(0.001, 2), quota=1)
    assert not allowed(users, user, NOW, 2)
    assert allowed(users, user, NOW, 1)
    assert allowed(users, user, NOW, 0)
    assert not allowed(users, user, NOW, 0)


def test_the_quota_holds_across_environments_with_outdated_caches(dynamodb: Any, user: str) -> None:
    """An environment trusts its cache; what others charged since is in the item."""
    rate = Rate.per_second(1000, 1000)
    one, other = users_of(dynamodb, rate, quota=10), users_of(dynamodb, rate, quota=10)
    assert allowed(one, user, NOW, 2)
    assert allowed(other, user, EpochMs(NOW + 1), 5)
    assert not allowed(one, user, EpochMs(NOW + 2), 4)
    assert allowed(one, user, EpochMs(NOW + 3), 3)
    assert not allowed(other, user, EpochMs(NOW + 4), 1)


def test_the_first_moment_of_a_day_belongs_to_that_day(dynamodb: Any, user: str) -> None:
    users = users_of(dynamodb, Rate.per_second(1000, 1000), quota=2)
    assert allowed(users, user, EpochMs(MIDNIGHT - 1), 2)
    assert not allowed(users, user, EpochMs(MIDNIGHT - 1), 1)
    assert allowed(users, user, MIDNIGHT, 2)
    assert not allowed(users, user, MIDNIGHT, 1)
