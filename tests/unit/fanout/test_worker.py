"""Workers deliver every queued message although workers die, and jobs arrive twice and late.

Workers stop before each call to DynamoDB and to SQS, and die or go on in any order.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import KeysUnavailable
from chalicelib.fanout.progress import LAST_TRY_MS
from chalicelib.fanout.queue import MAX_RECEIVES
from chalicelib.protocol.encryption import Encryption, FixedKeys, MasterKeys
from chalicelib.runtime.deadlines import Deadline
from chalicelib.settings import MasterKey
from chalicelib.store.schema import ROSTER_SHARDS
from tests.support.fanout import EVERYBODY, PEOPLE, SENDER, SHARDS, FanoutScene
from tests.support.tables import Counted
from tests.support.world import LIFE, NEVER, Handler, Herald

pytestmark = pytest.mark.ministack  # several workers at a time, and shards as MiniStack cuts them


def test_everybody_gets_a_message_once_in_slices_of_shards(scene: FanoutScene) -> None:
    [message_id] = scene.post()
    report = scene.progress(message_id)
    assert report["shards"] == {"total": SHARDS, "done": 0, "failed": 0}
    assert (report["recipients"], report["done"]) == (0, False)
    assert scene.work_off() >= PEOPLE / 2
    scene.assert_done(message_id)
    assert all(len(received) == 1 for received in scene.world.received.values())


def test_a_slice_makes_four_calls_and_one_for_each_shard_of_the_roster(scene: FanoutScene) -> None:
    scene.post()
    client: Any = Counted(scene.aws)
    scene.herald(client).worker.work(scene.receive(), Deadline.after(NEVER))
    claim, content, page, advance = "update_item", "batch_get_item", "query", "update_item"
    shards = ROSTER_SHARDS // SHARDS
    assert client.calls == [claim, content, *[page] * shards, advance, "send_message_batch"]


def test_the_sender_pays_for_the_frames_of_every_slice(life: Any) -> None:
    """A frame of 128 KB is four copies, so seven people are 28 copies a message."""
    scene = FanoutScene(life)
    large = {"to": {"all": True}, "data": "x" * 120_000, "store": False}
    client: Any = Counted(scene.aws)
    charged = 0
    worker = scene.herald(client).worker  # it remembers what is less than a unit
    for _ in range(8):
        scene.post(large)
        while scene.world.queue:
            client.calls.clear()
            records = scene.receive()
            assert worker.work(records, Deadline.after(NEVER)) == []
            scene.delete(records, [])
            charged += client.calls.count("update_item") == 3  # a claim, a charge, an advance
    copies = 8 * 4 * PEOPLE - 8 * 4 * 2  # the first slice of each request was paid for
    assert charged == copies // 100


# --- Deaths and duplicates


@pytest.mark.parametrize("calls", range(5 + ROSTER_SHARDS // SHARDS))
def test_a_job_whose_worker_dies_at_any_call_is_run_again(scene: FanoutScene, calls: int) -> None:
    [message_id] = scene.post()
    records = scene.receive()
    worker = scene.start(records)
    for _ in range(calls):
        if not worker.done:
            worker.step()
    if worker.done:
        scene.delete(records, [])
    else:
        worker.crash()
    scene.work_off()
    scene.assert_done(message_id)


def test_a_duplicate_of_a_running_job_is_dropped(scene: FanoutScene) -> None:
    [message_id] = scene.post()
    records = scene.receive()
    worker = scene.start(records)
    worker.step()  # it has claimed its shard
    body = json.dumps({**json.loads(records[0]["body"]), "id": "duplicate"})
    duplicate = {**records[0], "body": body}
    assert scene.herald().worker.work([duplicate], Deadline.after(NEVER)) == []
    assert scene.world.calls == 0
    while not worker.done:
        worker.step()
    scene.delete(records, [])
    scene.work_off()
    scene.assert_done(message_id)
    assert scene.world.calls == PEOPLE


def test_a_job_that_an_event_has_twice_is_run_once(scene: FanoutScene) -> None:
    [message_id] = scene.post()
    records = scene.receive() * 2
    assert scene.herald().worker.work(records, Deadline.after(NEVER)) == []
    scene.delete(records, [])
    scene.work_off()
    scene.assert_done(message_id)
    assert scene.world.calls == PEOPLE


class Chaos:
    """Up to three workers at a time, which may die; a job may be delivered to several of them."""

    def __init__(self, scene: FanoutScene, fates: st.DataObject) -> None:
        self.scene = scene
        self.draw = fates.draw
        self.workers: list[tuple[Handler, list[Any]]] = []

    def happen(self) -> None:
        event = self.draw(st.sampled_from(["start", "step", "step", "step", "run", "die"]))
        if event == "start" and len(self.workers) < 3 and self.scene.world.queue:
            # SQS may also deliver jobs that another worker has, after their visibility timeout.
            self.scene.world.queue.sort(key=lambda _: self.draw(st.booleans()))
            records = self.scene.receive(self.draw(st.integers(1, 3)))
            self._after((self.scene.start(records), records))
        elif self.workers:
            worker, records = self.workers.pop(self.draw(st.integers(0, len(self.workers) - 1)))
            if event == "die":
                worker.crash()
                return
            for _ in range(30 if event == "run" else 1):
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


@pytest.mark.timeout(300)  # forty histories of workers
@settings(
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(fates=st.data(), requests=st.integers(1, 2), events=st.integers(5, 40))
def test_everybody_is_reached_and_counted_in_any_order_of_events(
    life: Any, fates: st.DataObject, requests: int, events: int
) -> None:
    scene = FanoutScene(life)
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


# --- Batches


def test_jobs_with_the_same_target_are_delivered_in_one_batch(life: Any) -> None:
    """Ten requests cost one call for each connection; run one by one, they cost ten."""
    calls = {}
    for jobs in (1, 10):
        scene = FanoutScene(life, people=4)
        ids = [scene.post()[0] for _ in range(10)]
        scene.work_off(jobs)
        calls[jobs] = scene.world.calls
        for message_id in ids:
            scene.assert_done(message_id, people=4)
        for received in scene.world.received.values():
            assert received == ids  # in the order in which they were accepted
    assert calls == {1: 40, 10: 4}


def test_each_message_of_a_batch_reaches_only_its_audience(life: Any) -> None:
    scene = FanoutScene(life, people=4)
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


def test_a_batch_has_jobs_of_one_tenant(scene: FanoutScene) -> None:
    elsewhere = Principal("alice", 10**12, tenant="elsewhere", scopes=SENDER.scopes)
    [here], [there] = scene.post(), scene.post(sender=elsewhere)
    scene.work_off(10)
    scene.assert_done(here)
    report = scene.herald().progress.of(there, elsewhere, EpochMs(scene.world.now))
    assert (report["recipients"], report["done"]) == (0, True)


def test_a_request_of_100_messages_is_delivered_in_order(life: Any) -> None:
    scene = FanoutScene(life, people=2)
    ids = scene.post({"messages": [{**EVERYBODY, "data": number} for number in range(100)]})
    scene.work_off()
    assert {scene.progress(message_id)["delivered"] for message_id in ids} == {2}
    assert all(scene.progress(message_id)["done"] for message_id in ids)
    for received in scene.world.received.values():
        assert received == ids


# --- Audiences


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
def test_every_kind_of_audience_is_delivered_in_slices(scene: FanoutScene, to: Any) -> None:
    [message_id] = scene.post({"to": to, "data": "hello"})
    scene.work_off()
    scene.assert_done(message_id)
    assert all(len(received) == 1 for received in scene.world.received.values())


def test_users_named_beside_groups_are_read_once_in_slices(scene: FanoutScene) -> None:
    names = [f"user-{number}" for number in range(PEOPLE)]
    named = {"to": {"users": names}, "data": 1}
    ids = scene.post({"messages": [named, {"to": {"groups": ["team"]}, "data": 2}]})
    scene.work_off()
    for message_id in ids:
        scene.assert_done(message_id)
    assert scene.world.calls == PEOPLE


def test_connections_named_beside_their_users_are_read_once_in_slices(scene: FanoutScene) -> None:
    messages = [
        {"to": {"users": [f"user-{number}" for number in range(4)]}, "data": 1},
        {"to": {"connections": [f"{number:015}=" for number in range(PEOPLE)]}, "data": 2},
    ]
    [first, second] = scene.post({"messages": messages})
    scene.work_off()
    scene.assert_done(second)
    assert scene.progress(first)["delivered"] == 4
    assert scene.world.calls == PEOPLE


def test_recipients_that_are_not_reached_are_counted_and_named(life: Any) -> None:
    scene = FanoutScene(life, people=4)
    sockets = list(scene.world.sockets.values())
    sockets[0].state = "closed"
    scene.world.now += 60_000  # all handshakes are over
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


# --- Failures


def lose_content(scene: FanoutScene, message_id: str) -> Any:
    """Delete a request's messages; return the item that held them."""
    key = {"id": {"S": f"content/{message_id}/0"}}
    item = scene.aws.get_item(TableName=LIFE.messages, Key=key)["Item"]
    scene.aws.delete_item(TableName=LIFE.messages, Key=key)
    return item


def test_a_queue_message_that_is_not_a_job_fails_alone(scene: FanoutScene) -> None:
    [message_id] = scene.post()
    job: dict[str, Any] = json.loads(scene.world.queue[0]["body"])
    wrong: list[dict[str, Any]] = [
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
    failed = scene.herald().worker.work(records, Deadline.after(NEVER))
    assert sorted(failed) == [str(index) for index in range(len(bodies))]
    scene.delete(records, failed)
    scene.work_off()
    scene.assert_done(message_id)


def test_a_job_that_fails_does_not_fail_the_others_of_its_batch(scene: FanoutScene) -> None:
    first, lost, last = (scene.post()[0] for _ in range(3))
    lose_content(scene, lost)
    poison = [one["messageId"] for one in scene.world.queue if lost in one["body"]]
    while len(scene.world.queue) > len(poison):
        assert set(scene.work(10)) <= set(poison)
    scene.assert_done(first)
    scene.assert_done(last)


def test_a_request_that_fails_does_not_fail_the_others_of_its_job(scene: FanoutScene) -> None:
    first, lost, last = (scene.post()[0] for _ in range(3))
    while not any(len(json.loads(one["body"])["requests"]) == 3 for one in scene.world.queue):
        scene.work(10)
    lose_content(scene, lost)
    for _ in range(20):
        scene.work(10)
    assert all(lost in one["body"] for one in scene.world.queue)
    scene.assert_done(first)
    scene.assert_done(last)
    assert not scene.progress(lost)["shards"]["done"]


class Unreadable:
    """Master keys that can't be had."""

    def current(self) -> Sequence[MasterKey]:
        raise KeysUnavailable("the keys can't be fetched")

    def named(self, kid: str) -> MasterKey | None:
        raise KeysUnavailable("the keys can't be fetched")


class EncryptingScene(FanoutScene):
    """A scene whose master keys can be replaced."""

    keys: MasterKeys = FixedKeys([MasterKey("k", b"k" * 32)])

    def herald(self, client: Any = None) -> Herald:
        herald = super().herald(client)
        herald.encryption = Encryption(self.keys)
        return herald


def test_jobs_that_need_no_keys_are_done_while_the_keys_cannot_be_had(life: Any) -> None:
    scene = EncryptingScene(life)
    [first] = scene.post()
    [secret] = scene.post({**EVERYBODY, "encrypt": True})
    [last] = scene.post()
    readable, scene.keys = scene.keys, Unreadable()
    for _ in range(20):
        scene.work(10)
    assert all(secret in one["body"] for one in scene.world.queue)
    scene.assert_done(first)
    scene.assert_done(last)
    scene.keys = readable
    scene.work_off(10)
    scene.assert_done(secret)


def test_a_job_whose_messages_are_lost_fails_with_the_reason_in_the_log(
    scene: FanoutScene, caplog: pytest.LogCaptureFixture
) -> None:
    [message_id] = scene.post()
    lose_content(scene, message_id)
    logger = logging.getLogger("herald.fanout")
    logger.addHandler(caplog.handler)
    try:
        [failed] = scene.work()
    finally:
        logger.removeHandler(caplog.handler)
    assert failed == scene.world.queue[0]["messageId"]
    assert "a job's messages have expired, or their key was removed" in caplog.text


def test_a_dead_letter_is_a_failed_shard_and_can_be_redriven(scene: FanoutScene) -> None:
    [message_id] = scene.post()
    item = lose_content(scene, message_id)
    poison: Any = scene.world.queue[0]
    for _ in range(MAX_RECEIVES):
        assert not scene.progress(message_id)["done"]
        assert scene.work() == [poison["messageId"]]
    scene.aws.put_item(TableName=LIFE.messages, Item=item)
    scene.world.queue.remove(poison)  # to the dead-letter queue
    scene.work_off()
    assert not scene.progress(message_id)["done"]  # its worker could still be at work
    scene.world.now += LAST_TRY_MS + 1
    report = scene.progress(message_id)
    assert report["done"]
    assert report["shards"] == {"total": 2, "done": 1, "failed": 1}
    assert 0 < report["recipients"] < PEOPLE

    again = {**poison, "messageId": "other", "attributes": {"ApproximateReceiveCount": "0"}}
    scene.world.queue.append(again)
    scene.work_off()
    scene.assert_done(message_id)


def test_a_job_is_requeued_unchanged_if_there_is_no_time_for_it(scene: FanoutScene) -> None:
    scene.post()
    before = scene.world.queue[0]["body"]
    assert scene.work(seconds=0.0) == []
    assert scene.world.queue[-1]["body"] == before
    assert scene.world.calls == 0
