"""Messages through the queue, where what can go wrong does: workers die, jobs come twice and late.

Workers stand still before each call to DynamoDB and to SQS, and die or go on in any order.
"""

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib.auth.principal import Principal, Scope
from chalicelib.fanout import publisher
from chalicelib.fanout import worker as worker_module
from chalicelib.fanout.progress import LAST_TRY_MS
from chalicelib.fanout.publisher import MAX_SHARDS, SHARD_RECIPIENTS, shards_for
from chalicelib.fanout.queue import MAX_RECEIVES
from chalicelib.store.schema import QUEUED_SECONDS
from tests.support.tables import Counted, empty
from tests.support.world import LIFE, NEVER, Aws, Handler, Herald, World

JSON = {"content-type": "application/json"}
EVERYBODY: dict[str, Any] = {"to": {"all": True}, "data": "hello"}
SENDER = Principal(
    "alice", 10**12, scopes=frozenset({Scope.MESSAGES_SEND, Scope.MESSAGES_BROADCAST})
)
PEOPLE = 7
SHARDS = 2

pytestmark = pytest.mark.ministack  # several workers, and shards as MiniStack cuts them


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice is one page of two, and a table of seven is two shards."""
    monkeypatch.setattr(worker_module, "PAGE_ITEMS", 2)
    monkeypatch.setattr(worker_module, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(publisher, "SHARD_RECIPIENTS", 4)


class Scene:
    """People are connected, and everything is queued. SQS is played by the test."""

    def __init__(self, client: Any, people: int = PEOPLE) -> None:
        empty(client, LIFE)
        self.world = World()
        self.aws = Aws(client, self.world)
        self.world.estimate = people
        for number in range(people):
            socket = self.world.connect(f"user-{number}")
            self.herald().lifecycle.on_connect(socket.event())
            socket.state = "open"

    def herald(self, client: Any = None) -> Herald:
        return Herald(client or self.aws, self.world, inline=-1)

    def post(self, body: Any = EVERYBODY, sender: Principal = SENDER) -> list[str]:
        """Queue messages; their ids."""
        reply = self.herald().submissions.submit(
            sender, JSON, json.dumps(body), time.monotonic() + NEVER
        )
        assert reply.status == 202
        self.world.now += 1
        return [message["id"] for message in json.loads(reply.body)["messages"]]

    def receive(self, count: int = 1) -> list[Any]:
        """What SQS hands out next; it stays in the queue until it is deleted."""
        records = self.world.queue[:count]
        for record in records:
            receives = int(record["attributes"]["ApproximateReceiveCount"]) + 1
            record["attributes"]["ApproximateReceiveCount"] = str(receives)
        return records

    def work(self, count: int = 1, deadline: float = NEVER) -> list[str]:
        """One invocation of the worker; the ids that failed."""
        records = self.receive(count)
        failed = self.herald().worker.work(records, time.monotonic() + deadline)
        self.delete(records, failed)
        return failed

    def delete(self, records: list[Any], failed: list[str]) -> None:
        for record in records:
            if record["messageId"] not in failed and record in self.world.queue:
                self.world.queue.remove(record)

    def work_off(self, count: int = 1) -> int:
        """Work until the queue is empty; how many invocations that took."""
        invocations = 0
        while self.world.queue:
            assert self.work(count) == []
            invocations += 1
            assert invocations < 200
        return invocations

    def progress(self, message_id: str) -> Any:
        return self.herald().progress.of(message_id, SENDER, self.world.now)

    def assert_done(self, message_id: str, people: int = PEOPLE) -> None:
        report = self.progress(message_id)
        assert report["done"]
        assert report["shards"]["failed"] == 0
        assert (report["recipients"], report["delivered"]) == (people, people)
        assert len(self.world.received) == people
        assert all(message_id in received for received in self.world.received.values())


@pytest.fixture
def scene(life: Any) -> Scene:
    return Scene(life)


@pytest.mark.parametrize(
    ("recipients", "shards"),
    [(0, 1), (1, 1), (10_000, 1), (10_001, 2), (100_000, 16), (10**6, 64), (10**9, 64)],
)
def test_an_audience_is_cut_by_its_size(
    recipients: int, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "SHARD_RECIPIENTS", SHARD_RECIPIENTS)
    assert shards_for(recipients) == shards <= MAX_SHARDS


def test_everybody_gets_it_once_from_slices_of_shards(scene: Scene) -> None:
    [message_id] = scene.post()
    report = scene.progress(message_id)
    assert report["shards"] == {"total": SHARDS, "done": 0, "failed": 0}
    assert (report["recipients"], report["done"]) == (0, False)
    assert scene.work_off() >= PEOPLE / 2
    scene.assert_done(message_id)
    assert all(len(received) == 1 for received in scene.world.received.values())


def test_what_it_costs(life: Any) -> None:
    scene = Scene(life)
    client = Counted(scene.aws)
    herald = scene.herald(client)
    herald.submissions.submit(SENDER, JSON, json.dumps(EVERYBODY), time.monotonic() + NEVER)
    limit, kept, page = ["update_item"], ["batch_write_item"], ["scan"]
    late, put = ["batch_write_item"], ["put_item", "transact_write_items"]
    assert client.calls == [*limit, *kept, *page, *late, *put, "send_message_batch"]
    client.calls.clear()
    herald.worker.work(scene.receive(), time.monotonic() + NEVER)
    claim, content, advance = ["update_item"], ["batch_get_item"], ["update_item"]
    assert client.calls == [*claim, *content, *page, *advance, "send_message_batch"]


@pytest.mark.parametrize("calls", range(6))
def test_a_worker_that_dies_before_any_call_is_run_again(scene: Scene, calls: int) -> None:
    [message_id] = scene.post()
    records = scene.receive()
    worker = Handler(
        scene.aws, lambda client: scene.herald(client).worker.work(records, NEVER + 10**9)
    )
    for _ in range(calls):
        if not worker.done:
            worker.step()
    if worker.done:
        scene.delete(records, [])
    else:
        worker.crash()
    scene.work_off()
    scene.assert_done(message_id)


def test_a_double_of_a_job_that_is_done_just_now_is_dropped(scene: Scene) -> None:
    [message_id] = scene.post()
    records = scene.receive()
    worker = Handler(
        scene.aws, lambda client: scene.herald(client).worker.work(records, NEVER + 10**9)
    )
    worker.step()  # it has claimed its place
    double = {**json.loads(records[0]["body"]), "id": "double"}
    assert (
        scene.herald().worker.work(
            [{**records[0], "body": json.dumps(double)}], time.monotonic() + NEVER
        )
        == []
    )
    assert scene.world.calls == 0
    while not worker.done:
        worker.step()
    scene.delete(records, [])
    scene.work_off()
    scene.assert_done(message_id)
    assert scene.world.calls == PEOPLE


def test_a_job_that_comes_twice_in_a_batch_is_done_once(scene: Scene) -> None:
    [message_id] = scene.post()
    records = scene.receive() * 2
    assert scene.herald().worker.work(records, time.monotonic() + NEVER) == []
    scene.delete(records, [])
    scene.work_off()
    scene.assert_done(message_id)
    assert scene.world.calls == PEOPLE


class Chaos:
    """Workers at once, which die; jobs that come to two of them."""

    def __init__(self, scene: Scene, fates: st.DataObject) -> None:
        self.scene = scene
        self.draw = fates.draw
        self.workers: list[tuple[Handler, list[Any]]] = []

    def happen(self) -> None:
        what = self.draw(st.sampled_from(["start", "step", "step", "step", "run", "die"]))
        if what == "start" and len(self.workers) < 3 and self.scene.world.queue:
            # What another worker has may come, too: its time to hide it is over.
            self.scene.world.queue.sort(key=lambda _: self.draw(st.booleans()))
            records = self.scene.receive(self.draw(st.integers(1, 3)))
            worker = Handler(
                self.scene.aws,
                lambda client: self.scene.herald(client).worker.work(records, NEVER + 10**9),
            )
            self._after((worker, records))
        elif self.workers:
            worker, records = self.workers.pop(self.draw(st.integers(0, len(self.workers) - 1)))
            if what == "die":
                worker.crash()
                return
            for _ in range(30 if what == "run" else 1):
                if not worker.done:
                    worker.step()
            self._after((worker, records))

    def _after(self, entry: tuple[Handler, list[Any]]) -> None:
        worker, records = entry
        if not worker.done:
            self.workers.append(entry)
            return
        assert worker.error is None
        failed: Any = worker.result
        assert failed == []
        self.scene.delete(records, failed)

    def end(self) -> None:
        for worker, records in self.workers:
            while not worker.done:
                worker.step()
            self._after((worker, records))
        self.workers.clear()


@settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(fates=st.data(), requests=st.integers(1, 2), events=st.integers(5, 40))
def test_whatever_happens_nobody_is_missed_and_the_counts_are_right(
    life: Any, fates: st.DataObject, requests: int, events: int
) -> None:
    scene = Scene(life)
    ids = [scene.post()[0] for _ in range(requests)]
    chaos = Chaos(scene, fates)
    try:
        for _ in range(events):
            chaos.happen()
    finally:
        chaos.end()
    scene.work_off(3)
    for message_id in ids:
        scene.assert_done(message_id)


def test_jobs_that_wait_for_the_same_connections_are_done_together(life: Any) -> None:
    """Ten requests to everybody: one call for each connection, where one by one it is ten."""
    calls = {}
    for batch in (1, 10):
        scene = Scene(life, people=4)
        ids = [scene.post()[0] for _ in range(10)]
        scene.work_off(batch)
        calls[batch] = scene.world.calls
        for message_id in ids:
            scene.assert_done(message_id, people=4)
        for received in scene.world.received.values():
            assert received == ids  # in the order in which they were accepted
    assert calls == {1: 40, 10: 4}


def test_audiences_that_differ_are_done_together_and_each_gets_its_own(life: Any) -> None:
    scene = Scene(life, people=4)
    [everybody] = scene.post()
    [others] = scene.post({"to": {"all": True, "exceptUsers": ["user-1"]}, "data": 1})
    [named] = scene.post({"to": {"users": ["user-1", "user-2"]}, "data": 2})
    scene.work_off(10)
    received = list(scene.world.received.values())
    for person, ids in enumerate(received):
        expected = {everybody} | ({others} if person != 1 else set())
        assert set(ids) == (expected | {named} if person in (1, 2) else expected)
    assert scene.progress(others)["delivered"] == 3
    assert scene.progress(named)["delivered"] == 2


def test_jobs_of_different_tenants_are_never_done_together(scene: Scene) -> None:
    elsewhere = Principal("alice", 10**12, tenant="elsewhere", scopes=SENDER.scopes)
    [here], [there] = scene.post(), scene.post(sender=elsewhere)
    scene.work_off(10)
    scene.assert_done(here)
    report = scene.herald().progress.of(there, elsewhere, scene.world.now)
    assert (report["recipients"], report["done"]) == (0, True)


def test_a_request_of_100_messages_is_done_in_one_transaction(life: Any) -> None:
    scene = Scene(life, people=2)
    ids = scene.post({"messages": [{**EVERYBODY, "data": number} for number in range(100)]})
    scene.work_off()
    assert {scene.progress(message_id)["delivered"] for message_id in ids} == {2}
    assert all(scene.progress(message_id)["done"] for message_id in ids)
    for received in scene.world.received.values():
        assert received == ids


@pytest.mark.parametrize(
    "to",
    [
        {"users": [f"user-{number}" for number in range(PEOPLE)]},
        {"groups": ["team"]},
        {"groups": ["team", "room-1"]},
        {"groups": ["room-1", "team"], "exceptUsers": ["nobody"]},
        {"connections": [f"{number:015}=" for number in range(PEOPLE)]},
    ],
    ids=str,
)
def test_every_audience_can_be_read_in_slices(scene: Scene, to: Any) -> None:
    [message_id] = scene.post({"to": to, "data": "hello"})
    scene.work_off()
    scene.assert_done(message_id)
    assert all(len(received) == 1 for received in scene.world.received.values())


def test_who_is_named_beside_groups_is_met_once_in_slices(scene: Scene) -> None:
    names = [f"user-{number}" for number in range(PEOPLE)]
    named = {"to": {"users": names}, "data": 1}
    ids = scene.post({"messages": [named, {"to": {"groups": ["team"]}, "data": 2}]})
    scene.work_off()
    for message_id in ids:
        scene.assert_done(message_id)
    assert scene.world.calls == PEOPLE


def test_connections_named_beside_their_users_are_met_once_in_slices(scene: Scene) -> None:
    messages = [
        {"to": {"users": [f"user-{number}" for number in range(4)]}, "data": 1},
        {"to": {"connections": [f"{number:015}=" for number in range(PEOPLE)]}, "data": 2},
    ]
    [first, second] = scene.post({"messages": messages})
    scene.work_off()
    scene.assert_done(second)
    assert scene.progress(first)["delivered"] == 4
    assert scene.world.calls == PEOPLE


def test_who_is_not_reached_is_counted_and_some_are_named(life: Any) -> None:
    scene = Scene(life, people=4)
    sockets = list(scene.world.sockets.values())
    sockets[0].state = "closed"
    scene.world.now += 60_000  # no handshake is under way any more
    [message_id] = scene.post()
    scene.work_off()
    report = scene.progress(message_id)
    assert {name: report[name] for name in ("recipients", "delivered", "gone")} == {
        "recipients": 4,
        "delivered": 3,
        "gone": 1,
    }
    entry = {"connectionId": sockets[0].connection_id, "userId": "user-0", "reason": "gone"}
    assert report["failed"] == [entry]


def test_a_hundred_names_are_kept_however_many_slices_have_some(scene: Scene) -> None:
    from chalicelib.fanout.progress import ShardPosition
    from chalicelib.protocol.reports import Report, Result

    [message_id] = scene.post({"to": {"users": ["user-1"]}, "data": 1})
    progress = scene.herald().progress
    for number in range(3):
        place = ShardPosition(message_id, 0, str(number) if number else "")
        progress.claim(place, f"job-{number}")
        report = Report(message_id)
        for failed in range(60):
            report.add(f"connection-{number}-{failed}", "user", Result.GONE, "gone")
        rest = progress.advance(place, f"job-{number}", str(number + 1), [report])
        assert rest == str(number + 1)
    stored = scene.progress(message_id)
    assert (stored["gone"], len(stored["failed"])) == (180, 100)


# --- What can't be done


def test_what_is_no_job_fails_alone(scene: Scene) -> None:
    [message_id] = scene.post()
    job = json.loads(scene.world.queue[0]["body"])
    wrong = [
        {"requests": 5},
        {"requests": {"a": "b"}},
        {"shard": "x"},
        {"source": "nowhere"},
        {"after": ["?"], "requests": []},
        {"tenant": ["a"], "requests": {"absent": 1}},
    ]
    bodies = ["", "[]", "{}", *(json.dumps({**job, **fields}) for fields in wrong)]
    odd = [
        {"messageId": str(index), "body": body, "attributes": {"ApproximateReceiveCount": "1"}}
        for index, body in enumerate(bodies)
    ]
    records = [*odd[:2], *scene.receive(SHARDS), *odd[2:]]
    failed = scene.herald().worker.work(records, time.monotonic() + NEVER)
    assert sorted(failed) == [str(index) for index in range(len(bodies))]
    scene.delete(records, failed)
    scene.work_off()
    scene.assert_done(message_id)


def test_a_job_that_fails_does_not_take_those_with_it_that_it_would_be_done_with(
    scene: Scene,
) -> None:
    first, lost, last = (scene.post()[0] for _ in range(3))
    scene.aws.delete_item(TableName=LIFE.messages, Key={"id": {"S": f"content/{lost}/0"}})
    poison = [one["messageId"] for one in scene.world.queue if lost in one["body"]]
    while len(scene.world.queue) > len(poison):
        assert set(scene.work(10)) <= set(poison)
    scene.assert_done(first)
    scene.assert_done(last)


def test_a_request_that_fails_in_the_middle_does_not_take_the_others_of_its_job(
    scene: Scene,
) -> None:
    first, lost, last = (scene.post()[0] for _ in range(3))
    while not any(len(json.loads(one["body"])["requests"]) == 3 for one in scene.world.queue):
        scene.work(10)
    scene.aws.delete_item(TableName=LIFE.messages, Key={"id": {"S": f"content/{lost}/0"}})
    for _ in range(20):
        scene.work(10)
    assert all(lost in one["body"] for one in scene.world.queue)
    scene.assert_done(first)
    scene.assert_done(last)
    assert not scene.progress(lost)["shards"]["done"]


def test_a_job_whose_messages_are_lost_fails_and_says_why(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    [message_id] = scene.post()
    scene.aws.delete_item(TableName=LIFE.messages, Key={"id": {"S": f"content/{message_id}/0"}})
    logger = logging.getLogger("herald.fanout")
    logger.addHandler(caplog.handler)
    try:
        [failed] = scene.work()
    finally:
        logger.removeHandler(caplog.handler)
    assert failed == scene.world.queue[0]["messageId"]
    assert "a job's messages, or the key to them, are not there" in caplog.text


def test_a_job_that_fails_for_the_last_time_is_in_the_progress_and_can_be_redriven(
    scene: Scene,
) -> None:
    [message_id] = scene.post()
    content = {"id": {"S": f"content/{message_id}/0"}}
    item = scene.aws.get_item(TableName=LIFE.messages, Key=content)["Item"]
    scene.aws.delete_item(TableName=LIFE.messages, Key=content)
    poison = scene.world.queue[0]
    for _ in range(MAX_RECEIVES):
        assert not scene.progress(message_id)["done"]
        assert scene.work() == [poison["messageId"]]
    scene.aws.put_item(TableName=LIFE.messages, Item=item)
    scene.world.queue.remove(poison)  # to the dead letters
    scene.work_off()
    assert not scene.progress(message_id)["done"]  # it may be at it yet, for all that is known
    scene.world.now += LAST_TRY_MS + 1
    report = scene.progress(message_id)
    assert report["done"]
    assert report["shards"] == {"total": 2, "done": 1, "failed": 1}
    assert 0 < report["recipients"] < PEOPLE

    again = {**poison, "messageId": "another", "attributes": {"ApproximateReceiveCount": "0"}}
    scene.world.queue.append(again)
    scene.work_off()
    scene.assert_done(message_id)


def test_a_request_that_was_queued_in_part_is_queued_again_under_the_same_ids(
    scene: Scene,
) -> None:
    """Its handler died between the tables and the queue; the next has the `Idempotency-Key`."""
    headers = {**JSON, "idempotency-key": "k"}

    def submit(client: Any) -> Any:
        herald = scene.herald(client)
        return herald.submissions.submit(
            SENDER, headers, json.dumps(EVERYBODY), time.monotonic() + NEVER
        )

    dying = Handler(scene.aws, submit)
    for _ in range(7):  # claim, charge, keep, read, keep as late, content, progress
        dying.step()
    dying.crash()
    assert scene.world.queue == []
    scene.world.now += 60_000
    scene.world.estimate = 1  # by which it would be one shard now
    first = submit(scene.aws)
    again = submit(scene.aws)
    assert (first.status, first.replayed) == (202, False)
    assert (again.status, again.replayed, again.body) == (202, True, first.body)
    assert len(scene.world.queue) == SHARDS
    scene.work_off()
    [message] = json.loads(first.body)["messages"]
    scene.assert_done(message["id"])


def test_without_time_a_job_goes_back_as_it_was(scene: Scene) -> None:
    scene.post()
    before = scene.world.queue[0]["body"]
    assert scene.work(deadline=0.0) == []
    assert scene.world.queue[-1]["body"] == before
    assert scene.world.calls == 0


def test_the_report_is_kept_for_a_day(scene: Scene) -> None:
    from chalicelib.errors import NotFound

    [message_id] = scene.post()
    scene.work_off()
    scene.world.now += (QUEUED_SECONDS - 1) * 1000
    assert scene.progress(message_id)["done"]
    scene.world.now += 2000
    with pytest.raises(NotFound):
        scene.progress(message_id)
