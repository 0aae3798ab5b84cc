"""The pace of the workers, by clocks that the tests turn."""

import time
from collections import Counter
from typing import Any

import pytest

from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Parcel
from chalicelib.fanout.rate import FORGOTTEN, SECOND, FanoutRateLimiter
from chalicelib.store.dynamodb import Store
from tests.support.tables import TABLES, Counted, recipient

NEVER = 10_000.0
FRAME = frame_of(b"{}")


def parcels(count: int, frames: int = 1) -> list[Parcel]:
    return [Parcel(recipient(f"c-{number}", "u"), (FRAME,) * frames) for number in range(count)]


class Clock:
    """Time passes in `sleep` alone; it is kept by each worker for itself."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1000

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


class Line:
    """A worker that sends without end, and is called when it is its turn."""

    def __init__(self, client: Any, region: str, tenant: str | None, rate: int, start: int) -> None:
        self.clock = Clock()
        self.clock.now = start
        self.tenant = tenant
        self.sent: list[tuple[int, int]] = []
        self._rate_limiter = FanoutRateLimiter(
            Store(client, TABLES),
            region=region,
            per_second=rate,
            now=lambda: self.clock.now,
            sleep=self.clock.sleep,
        )
        self._parcels = self._endless()

    def _endless(self) -> Any:
        while True:
            yield from self._rate_limiter.throttle(
                parcels(1000), self.tenant, time.monotonic() + NEVER
            )

    def step(self) -> None:
        self.sent.append((self.clock.now, len(next(self._parcels))))
        self.sent[-1] = (self.clock.now, self.sent[-1][1])


def run(lines: list[Line], seconds: float) -> Counter[str | None]:
    """Run workers side by side for a while; how many frames each tenant sent."""
    start = min(line.clock.now for line in lines)
    end = start + round(seconds * SECOND)
    while (line := min(lines, key=lambda line: line.clock.now)).clock.now < end:
        line.step()
    sent: Counter[str | None] = Counter()
    for line in lines:
        sent[line.tenant] += sum(frames for at, frames in line.sent if start <= at < end)
        line.sent.clear()
    return sent


def test_workers_together_keep_to_the_rate(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    lines = [Line(moto, user, "t", 1000, start) for _ in range(4)]
    assert run(lines, 5)["t"] == pytest.approx(5000, rel=0.05)


def test_tenants_share_alike_however_many_workers_each_has(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    big = [Line(moto, user, "big", 1000, start) for _ in range(4)]
    small = Line(moto, user, None, 1000, start)
    run([*big, small], 2)
    sent = run([*big, small], 4)
    assert sent["big"] == pytest.approx(2000, rel=0.1)
    assert sent[None] == pytest.approx(2000, rel=0.1)


def test_who_comes_while_others_send_waits_less_than_a_second(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    lines = [Line(moto, user, "big", 1000, start) for _ in range(4)]
    run(lines, 3)
    late = Line(moto, user, "late", 1000, max(line.clock.now for line in lines))
    came = late.clock.now
    late.step()
    assert late.sent[0][0] - came < SECOND


def test_a_share_is_free_again_when_its_tenant_has_done(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    one, other = (Line(moto, user, name, 1000, start) for name in ("one", "other"))
    run([one, other], 2)
    assert run([one], 4)["one"] == pytest.approx(4000, rel=0.2)  # half for a second, then all


def test_frames_count_and_not_recipients(moto: Any, user: str) -> None:
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(moto, TABLES), region=user, per_second=100, now=lambda: clock.now, sleep=clock.sleep
    )
    began = clock.now
    for _ in rate_limiter.throttle(parcels(100, frames=3), "t", time.monotonic() + NEVER):
        pass
    assert (clock.now - began) / SECOND == pytest.approx(3, rel=0.15)


def test_after_the_end_what_was_read_goes_out(moto: Any, user: str) -> None:
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(moto, TABLES), region=user, per_second=1, now=lambda: clock.now, sleep=clock.sleep
    )
    began = clock.now
    sent = [len(some) for some in rate_limiter.throttle(parcels(50), "t", time.monotonic() - 1)]
    assert sum(sent) == 50
    assert clock.now == began


def test_without_a_rate_nothing_is_asked_nor_held_up(moto: Any) -> None:
    client: Any = Counted(moto)
    rate_limiter = FanoutRateLimiter(Store(client, TABLES), region="-", per_second=0)
    everything = parcels(5000)
    assert list(rate_limiter.throttle(everything, None, 0.0)) == [everything]
    assert client.calls == []
    assert rate_limiter.page_items(1000) == 1000


def test_no_more_is_read_at_a_time_than_a_second_takes(moto: Any) -> None:
    assert FanoutRateLimiter(Store(moto, TABLES), region="-", per_second=20).page_items(1000) == 20
    assert (
        FanoutRateLimiter(Store(moto, TABLES), region="-", per_second=8000).page_items(1000) == 1000
    )


def test_a_reservation_is_a_call_or_two_for_a_tenth_of_a_second(moto: Any, user: str) -> None:
    client: Any = Counted(moto)
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(client, TABLES),
        region=user,
        per_second=5000,
        now=lambda: clock.now,
        sleep=clock.sleep,
    )
    for _ in rate_limiter.throttle(parcels(5000), "t", time.monotonic() + NEVER):
        pass
    assert client.calls.count("update_item") <= 11


def test_clocks_of_tenants_long_gone_are_forgotten(moto: Any, user: str) -> None:
    start = time.time_ns() // 1000
    for number in range(5):
        Line(moto, user, f"tenant-{number}", 1000, start).step()
    late = Line(moto, user, "late", 1000, start + FORGOTTEN + 2 * SECOND)
    late.step()
    late.step()
    item = moto.get_item(TableName=TABLES.messages, Key={"id": {"S": f"pace/{user}"}})["Item"]
    assert len(item) == 2
