"""Workers keep to the fan-out's rate, and tenants share it; the tests turn the clocks."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Parcel
from chalicelib.fanout.rate import FORGOTTEN_AFTER, SECOND, FanoutRateLimiter
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.dynamodb import Store
from tests.support.tables import TABLES, Counted, recipient

NEVER = 10_000.0
FRAME = frame_of(b"{}")


def parcels(count: int, frames: int = 1) -> list[Parcel]:
    return [Parcel(recipient(f"c-{number}", "u"), (FRAME,) * frames) for number in range(count)]


def throttled(limiter: FanoutRateLimiter, page: list[Parcel]) -> Iterator[list[Parcel]]:
    return limiter.for_tenant("t", Deadline.after(NEVER)).throttle(page)


class Clock:
    """A worker's clock: only `sleep` advances it."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1000

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


class Sending:
    """A worker that sends without end; `step` sends its next parcels."""

    def __init__(self, client: Any, region: str, tenant: str | None, rate: int, start: int) -> None:
        self.clock = Clock()
        self.clock.now = start
        self.tenant = tenant
        self.sent: list[tuple[int, int]] = []
        limiter = FanoutRateLimiter(
            Store(client, TABLES),
            region=region,
            per_second=rate,
            now=lambda: self.clock.now,
            sleep=self.clock.sleep,
        )
        self._throttle = limiter.for_tenant(tenant, Deadline.after(NEVER)).throttle
        self._parcels = self._endless()

    def _endless(self) -> Any:
        while True:
            yield from self._throttle(parcels(1000))

    def step(self) -> None:
        count = len(next(self._parcels))
        self.sent.append((self.clock.now, count))


def run(senders: list[Sending], seconds: float) -> Counter[str | None]:
    """Run workers side by side for some seconds; return how many frames each tenant sent."""
    start = min(sender.clock.now for sender in senders)
    end = start + round(seconds * SECOND)
    while (sender := min(senders, key=lambda sender: sender.clock.now)).clock.now < end:
        sender.step()
    sent: Counter[str | None] = Counter()
    for sender in senders:
        sent[sender.tenant] += sum(frames for at, frames in sender.sent if start <= at < end)
        sender.sent.clear()
    return sent


def test_all_workers_together_keep_to_the_rate(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    senders = [Sending(moto, user, "t", 1000, start) for _ in range(4)]
    assert run(senders, 5)["t"] == pytest.approx(5000, rel=0.05)


def test_tenants_share_the_rate_equally_however_many_workers_each_has(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    big = [Sending(moto, user, "big", 1000, start) for _ in range(4)]
    small = Sending(moto, user, None, 1000, start)
    run([*big, small], 2)
    sent = run([*big, small], 4)
    assert sent["big"] == pytest.approx(2000, rel=0.1)
    assert sent[None] == pytest.approx(2000, rel=0.1)


def test_a_new_tenant_waits_less_than_a_second_while_another_sends(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    senders = [Sending(moto, user, "big", 1000, start) for _ in range(4)]
    run(senders, 3)
    late = Sending(moto, user, "late", 1000, max(sender.clock.now for sender in senders))
    came = late.clock.now
    late.step()
    assert late.sent[0][0] - came < SECOND


def test_the_share_of_a_tenant_that_stopped_is_given_to_the_others(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    one, other = (Sending(moto, user, name, 1000, start) for name in ("one", "other"))
    run([one, other], 2)
    assert run([one], 4)["one"] == pytest.approx(4000, rel=0.2)  # half for a second, then all


def test_the_rate_counts_frames_and_not_recipients(moto: Any, user: str) -> None:
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(moto, TABLES), region=user, per_second=100, now=lambda: clock.now, sleep=clock.sleep
    )
    began = clock.now
    for _ in throttled(rate_limiter, parcels(100, frames=3)):
        pass
    assert (clock.now - began) / SECOND == pytest.approx(3, rel=0.15)


def test_parcels_are_not_held_back_after_the_end(moto: Any, user: str) -> None:
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(moto, TABLES), region=user, per_second=1, now=lambda: clock.now, sleep=clock.sleep
    )
    began = clock.now
    throttle = rate_limiter.for_tenant("t", until=Deadline.after(-1)).throttle
    assert sum(len(some) for some in throttle(parcels(50))) == 50
    assert clock.now == began


def test_a_rate_of_0_is_no_limit_and_costs_no_call(moto: Any) -> None:
    client: Any = Counted(moto)
    rate_limiter = FanoutRateLimiter(Store(client, TABLES), region="-", per_second=0)
    everything = parcels(5000)
    assert list(rate_limiter.for_tenant(None, Deadline.after(0)).throttle(everything)) == [
        everything
    ]
    assert client.calls == []
    assert rate_limiter.page_items(1000) == 1000


def test_a_page_has_at_most_a_seconds_worth_of_recipients(moto: Any) -> None:
    assert FanoutRateLimiter(Store(moto, TABLES), region="-", per_second=20).page_items(1000) == 20
    assert (
        FanoutRateLimiter(Store(moto, TABLES), region="-", per_second=8000).page_items(1000) == 1000
    )


def test_a_second_of_frames_costs_about_ten_reservations(moto: Any, user: str) -> None:
    client: Any = Counted(moto)
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(client, TABLES),
        region=user,
        per_second=5000,
        now=lambda: clock.now,
        sleep=clock.sleep,
    )
    for _ in throttled(rate_limiter, parcels(5000)):
        pass
    assert client.calls.count("update_item") <= 11


def test_stale_clocks_are_removed(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    for number in range(5):
        Sending(moto, user, f"tenant-{number}", 1000, start).step()
    late = Sending(moto, user, "late", 1000, start + FORGOTTEN_AFTER + 2 * SECOND)
    late.step()
    late.step()
    item = moto.get_item(TableName=TABLES.messages, Key={"id": {"S": f"pace/{user}"}})["Item"]
    assert len(item) == 2
