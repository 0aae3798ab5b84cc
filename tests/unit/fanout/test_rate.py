"""Workers keep to the fan-out's rate, and tenants share it; the tests turn the clocks."""

import contextlib
import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Parcel
from chalicelib.fanout.census import COUNTERS, LONGEST_STEP, PERIOD, SECOND, SLACK
from chalicelib.fanout.rate import FanoutRateLimiter
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.dynamodb import Retries, Store
from tests.support.tables import TABLES, Counted, recipient

NEVER = 10_000.0
FRAME = frame_of(b"{}")
AT_ONCE = Retries(batch_backoff_seconds=0, conflict_backoff_seconds=0)


def parcels(count: int, frames: int = 1) -> list[Parcel]:
    return [Parcel(recipient(f"c-{number}", "u"), (FRAME,) * frames) for number in range(count)]


PAGE = parcels(1000)


def throttled(limiter: FanoutRateLimiter, page: list[Parcel]) -> Iterator[list[Parcel]]:
    return limiter.for_tenant("t", Deadline.after(NEVER)).throttle(page)


class Clock:
    """A worker's clock: only `sleep` advances it."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1000
        self.slept: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
        self.slept()


class Sending:
    """A worker that sends without end; `step` sends its next parcels."""

    def __init__(self, client: Any, region: str, tenant: str | None, rate: int, start: int) -> None:
        self.clock = Clock()
        self.clock.now = start
        self.tenant = tenant
        self.sent: list[tuple[int, int]] = []
        limiter = FanoutRateLimiter(
            Store(client, TABLES, AT_ONCE),
            region=region,
            per_second=rate,
            now=lambda: self.clock.now,
            sleep=self.clock.sleep,
        )
        self.throttle = limiter.for_tenant(tenant, Deadline.after(NEVER)).throttle
        self._parcels = self._endless()

    def _endless(self) -> Any:
        while True:
            yield from self.throttle(PAGE)

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
    assert rate_limiter.share() is None
    assert client.calls == []


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
    assert client.calls.count("update_item") <= 11 + 2 * 3  # and two periods are counted in
    assert client.calls.count("batch_get_item") <= 5


def test_free_frames_are_not_reserved(moto: Any, user: str) -> None:
    client: Any = Counted(moto)
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(client, TABLES), region=user, per_second=10, now=lambda: clock.now, sleep=clock.sleep
    )
    throttle = rate_limiter.for_tenant("t", Deadline.after(NEVER), free_frames=100).throttle
    began = clock.now
    assert [len(some) for some in throttle(parcels(30, frames=2))] == [30]
    assert client.calls == []
    assert [len(some) for some in throttle(parcels(21, frames=2))] == [20, 1]
    assert clock.now == began
    assert list(throttle(parcels(1)))
    assert clock.now > began


def test_a_parcel_of_many_frames_is_a_reservation_of_its_own(moto: Any, user: str) -> None:
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(moto, TABLES), region=user, per_second=100, now=lambda: clock.now, sleep=clock.sleep
    )
    began = clock.now
    assert [len(some) for some in throttled(rate_limiter, parcels(4, frames=60))] == [1] * 4
    assert (clock.now - began) / SECOND == pytest.approx(3 * 0.6, rel=0.1)


# --- Many tenants


class Table:
    """The items that the limiter writes, in memory: DynamoDB, as far as the limiter uses it.

    `writes` has the key of each write, and when it came; a condition that fails is a write, too.
    """

    def __init__(self) -> None:
        self.now = 0
        self.writes: list[tuple[int, str]] = []
        self._items: dict[str, dict[str, int]] = {}

    def update_item(self, **call: Any) -> Any:
        key = call["Key"]["id"]["S"]
        item = self._items.get(key, {})
        values = {
            name: int(value["N"]) for name, value in call["ExpressionAttributeValues"].items()
        }
        self.writes.append((self.now, key))
        conditions = call["ConditionExpression"].split(" AND ")
        if not all(self._holds(condition, item, values) for condition in conditions):
            error = {"Code": "ConditionalCheckFailedException", "Message": ""}
            response: Any = {"Error": error, "Item": _typed(item)}
            raise ClientError(response, "UpdateItem")
        self._items[key] = self._updated(call["UpdateExpression"], dict(item), values)
        return {"Attributes": _typed(item)}

    def batch_get_item(self, **call: Any) -> Any:
        [(table, request)] = call["RequestItems"].items()
        found = [
            {"id": key["id"], **_typed(self._items[key["id"]["S"]])}
            for key in request["Keys"]
            if key["id"]["S"] in self._items
        ]
        return {"Responses": {table: found}, "UnprocessedKeys": {}}

    @staticmethod
    def _holds(condition: str, item: dict[str, int], values: dict[str, int]) -> bool:
        match condition:
            case "(#due > :now)":
                return item.get("due", 0) > values[":now"]
            case "(attribute_not_exists(#due) OR #due <= :now)":
                return item.get("due", 0) <= values[":now"]
            case "(#period = :period)":
                return item.get("period") == values[":period"]
            case "(attribute_not_exists(#period) OR #period < :period)":
                return item.get("period", -1) < values[":period"]
        raise NotImplementedError(condition)

    @staticmethod
    def _updated(expression: str, item: dict[str, int], values: dict[str, int]) -> dict[str, int]:
        if expression == "ADD tenants :one":
            return {**item, "tenants": item["tenants"] + 1}
        for assignment in expression.removeprefix("SET ").split(", "):
            name, _, value = assignment.replace("#", "").partition(" = ")
            item[name] = item[name] + values[":cost"] if "+" in value else values[value]
        return item


def _typed(item: dict[str, int]) -> dict[str, Any]:
    return {name: {"N": str(value)} for name, value in item.items()}


class Fleet:
    """Workers of many tenants that all begin within the same second.

    Each runs in a thread of its own, and only the one whose turn it is by its clock.
    """

    def __init__(self, tenants: int, workers: int, rate: int = 8000) -> None:
        self.table = Table()
        chance = random.Random(tenants)
        self.end = 1_795_477_071 * SECOND
        self.senders = [
            Turns(self.table, f"t-{tenant}", rate, self.end + chance.randrange(SECOND))
            for tenant in range(tenants)
            for _ in range(workers)
        ]

    def run(self, seconds: float) -> Counter[str | None]:
        """Go on for some seconds; return how many frames each tenant sent in them."""
        begin, self.end = self.end, self.end + round(seconds * SECOND)
        self.table.writes.clear()
        order = [(one.clock.now, number) for number, one in enumerate(self.senders)]
        heapq.heapify(order)
        while order[0][0] < self.end:
            self.table.now, number = order[0]
            sender = self.senders[number]
            sender.take_turn()
            heapq.heapreplace(order, (sender.clock.now, number))
        sent: Counter[str | None] = Counter()
        for sender in self.senders:
            sent[sender.tenant] += sum(n for at, n in sender.sent if begin <= at < self.end)
        return sent

    def busiest_key(self) -> int:
        """Return the most writes to one key in a second of the last run."""
        return max(Counter((at // SECOND, key) for at, key in self.table.writes).values())

    def stop(self) -> None:
        for sender in self.senders:
            sender.stop()


class Stopped(Exception):
    """The end of a worker's thread."""


class Turns(Sending):
    """A worker in a thread, which gives the turn to others whenever it sleeps."""

    def __init__(self, table: Any, tenant: str, rate: int, start: int) -> None:
        super().__init__(table, "r", tenant, rate, start)
        self._go, self._gone = threading.Semaphore(0), threading.Semaphore(0)
        self._stopping = False
        self.clock.slept = self._give_turn
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take_turn(self) -> None:
        """Go on until the next sleep."""
        self._go.release()
        self._gone.acquire()

    def stop(self) -> None:
        self._stopping = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        with contextlib.suppress(Stopped):
            while True:
                self.step()

    def _give_turn(self) -> None:
        self._gone.release()
        self._go.acquire()
        if self._stopping:
            raise Stopped


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    running = Fleet(*request.param)
    yield running
    running.stop()


@pytest.mark.parametrize("fleet", [(1, 4), (40, 3), (60, 3), (200, 2)], indirect=True)
def test_no_key_is_hot_and_tenants_share_the_rate_however_many_send(fleet: Fleet) -> None:
    fleet.run(3)
    assert fleet.busiest_key() <= 300
    sent = fleet.run(4)
    assert fleet.busiest_key() <= 300
    assert sum(sent.values()) == pytest.approx(4 * 8000, rel=0.05)
    share = 4 * 8000 / len(sent)
    assert all(frames == pytest.approx(share, rel=0.25) for frames in sent.values())


@pytest.mark.parametrize("fleet", [(60, 2)], indirect=True)
def test_tenants_that_begin_at_once_soon_know_of_each_other(fleet: Fleet) -> None:
    fleet.run(1)
    assert sum(fleet.run(1).values()) < 1.5 * 8000


def test_a_tenant_reserves_often_enough_to_be_counted_in_each_period() -> None:
    assert LONGEST_STEP + SLACK < PERIOD
    assert 1000 / COUNTERS < 300


# --- Storage in trouble


class Throttling:
    """A DynamoDB client that can be told to throttle everything."""

    def __init__(self, client: Any) -> None:
        self.throttles = False
        self.calls = 0
        self._client = client

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._client, operation)

        def throttled(**parameters: Any) -> Any:
            self.calls += 1
            if self.throttles:
                response: Any = {"Error": {"Code": "ThrottlingException", "Message": ""}}
                raise ClientError(response, operation)
            return call(**parameters)

        return throttled


def test_a_worker_goes_on_at_the_last_known_share_while_storage_throttles() -> None:
    client = Throttling(Table())
    senders = [Sending(client, "r", name, 1000, 1_795_477_071 * SECOND) for name in ("a", "b")]
    run(senders, 2)
    client.throttles = True
    client.calls = 0
    sent = run(senders, 4)
    assert sent["a"] == pytest.approx(2000, rel=0.1)
    assert sent["b"] == pytest.approx(2000, rel=0.1)
    assert client.calls <= 2 * 2 * 6  # storage in trouble is left alone for a second
    client.throttles = False
    run(senders, 2)
    assert sum(run(senders, 4).values()) == pytest.approx(4000, rel=0.05)


def test_a_tenant_that_cannot_be_counted_is_not_held_up(
    moto: Any, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = Throttling(moto)
    client.throttles = True
    clock = Clock()
    rate_limiter = FanoutRateLimiter(
        Store(cast("Any", client), TABLES),
        region=user,
        per_second=100,
        now=lambda: clock.now,
        sleep=clock.sleep,
    )
    began = clock.now
    assert sum(len(some) for some in throttled(rate_limiter, parcels(100))) == 100
    assert (clock.now - began) / SECOND == pytest.approx(1, rel=0.15)
    assert "the last known share of the rate is used: storage is unavailable" in caplog.messages


def test_a_tenant_whose_worker_waits_for_long_is_counted_in_each_period() -> None:
    table = Table()
    sender = Sending(table, "r", "t", 10, 1_795_477_071 * SECOND)
    for _ in range(3):
        sender.clock.slept = lambda: setattr(table, "now", sender.clock.now)
        list(throttled_by(sender, parcels(1, frames=50)))
    counted = {at // PERIOD for at, key in table.writes if "/active/" in key}
    assert len(counted) >= 10


def test_a_worker_that_waits_is_not_stopped_by_storage_in_trouble() -> None:
    client = Throttling(Table())
    sender = Sending(client, "r", "t", 10, 1_795_477_071 * SECOND)
    list(throttled_by(sender, parcels(1, frames=50)))
    began = sender.clock.now

    def trouble() -> None:
        client.throttles = True

    sender.clock.slept = trouble
    list(throttled_by(sender, parcels(1, frames=50)))
    assert (sender.clock.now - began) / SECOND == pytest.approx(5, rel=0.1)


def throttled_by(sender: Sending, page: list[Parcel]) -> Iterator[list[Parcel]]:
    return iter(sender.throttle(page))
