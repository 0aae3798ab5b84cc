"""Publishing cuts an audience into shards, queues a job for each, and can be repeated."""

import json
from typing import Any

import pytest

from chalicelib.fanout.publisher import MAX_SHARDS, shards_for
from chalicelib.fanout.queue import Job, Target
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.audience import Shard, Source
from chalicelib.store.schema import ROSTER_SHARDS
from tests.support.fanout import EVERYBODY, JSON, SENDER, SHARDS, FanoutScene
from tests.support.tables import Counted
from tests.support.world import NEVER, Handler


def jobs(scene: FanoutScene) -> list[Job]:
    return [Job.from_json(record["body"]) for record in scene.world.queue]


@pytest.mark.parametrize(
    ("recipients", "shards"),
    [(0, 1), (1, 1), (10_000, 1), (10_001, 2), (40_000, 4), (40_001, 8), (10**9, 8)],
)
def test_the_number_of_shards_grows_with_the_audience(recipients: int, shards: int) -> None:
    assert shards_for(recipients) == shards <= MAX_SHARDS


def test_a_message_to_everybody_is_a_job_for_each_shard(scene: FanoutScene) -> None:
    [message_id] = scene.post()
    assert [job.target for job in jobs(scene)] == [
        Target(None, Source.EVERYONE, Shard(shard, SHARDS)) for shard in range(SHARDS)
    ]
    assert all(job.requests.keys() == {message_id} for job in jobs(scene))
    assert len({job.id for job in jobs(scene)}) == SHARDS


@pytest.mark.parametrize("known", [None, 0])
def test_a_message_to_everybody_is_one_job_while_their_number_is_unknown(
    scene: FanoutScene, known: int | None
) -> None:
    scene.world.estimate = known
    scene.post()
    assert [job.target.shard for job in jobs(scene)] == [Shard()]


@pytest.mark.parametrize(
    ("to", "source"),
    [
        ({"groups": ["team"]}, Source.GROUPS),
        ({"users": ["user-1"]}, Source.NAMES),
        ({"connections": ["c="]}, Source.NAMES),
    ],
)
def test_another_audience_is_one_job(scene: FanoutScene, to: Any, source: Source) -> None:
    scene.post({"to": to, "data": 1})
    assert [job.target for job in jobs(scene)] == [Target(None, source, Shard())]


def test_a_queued_post_makes_seven_calls_and_one_for_each_shard_of_the_roster(
    scene: FanoutScene,
) -> None:
    client: Any = Counted(scene.aws)
    herald = scene.herald(client)
    herald.submissions.submit(SENDER, JSON, json.dumps(EVERYBODY), Deadline.after(NEVER))
    charge, kept, page = "update_item", "batch_write_item", "query"
    marker, late = "update_item", "batch_write_item"
    content, progress, jobs_sent = "put_item", "transact_write_items", "send_message_batch"
    assert client.calls == [
        charge, kept, *[page] * ROSTER_SHARDS, marker, late, content, progress, jobs_sent,
    ]  # fmt: skip


@pytest.mark.ministack
def test_a_request_whose_handler_died_is_queued_again_under_the_same_ids(
    scene: FanoutScene,
) -> None:
    """The handler died between the tables and the queue; the client repeats the request."""
    headers = {**JSON, "idempotency-key": "k"}

    def submit(client: Any) -> Any:
        herald = scene.herald(client)
        return herald.submissions.submit(
            SENDER, headers, json.dumps(EVERYBODY), Deadline.after(NEVER)
        )

    dying = Handler(scene.aws, submit)
    # Claim, charge, append, read, mark as delayed (two calls), content, progress.
    for _ in range(7 + ROSTER_SHARDS):
        dying.step()
    dying.crash()
    assert scene.world.queue == []
    scene.world.now += 60_000
    scene.world.estimate = 1  # which would be one shard
    first = submit(scene.aws)
    again = submit(scene.aws)
    assert (first.status, first.replayed) == (202, False)
    assert (again.status, again.replayed, again.body) == (202, True, first.body)
    assert len(scene.world.queue) == SHARDS
    scene.work_off()
    [message] = json.loads(first.body)["messages"]
    scene.assert_done(message["id"])
