"""Jobs in SQS, through the SDK and back out of the queue."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.session import Session

from chalicelib.errors import Unavailable
from chalicelib.fanout.queue import MAX_BATCH, MAX_RECEIVES, Job, JobsFailed, Queue, Route
from chalicelib.runtime.aws import sdk_client
from chalicelib.store.audience import Shard, Source
from gateway.aws.emulator import create_queues
from tests.support.tables import Counted


@pytest.fixture
def sqs(aws: None) -> Iterator[Any]:
    client = sdk_client(Session(), "sqs")
    yield client
    client.close()


@pytest.fixture
def urls(sqs: Any) -> dict[str, str]:
    """The URLs of Herald's queues."""
    return create_queues(sqs)


def job(number: int, tenant: str | None = None) -> Job:
    return Job({f"message-{number}": number}, Route(tenant, Source.EVERYONE, Shard(0, 1, "")))


def received(sqs: Any, url: str) -> list[Any]:
    messages: list[Any] = []
    while more := sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"]
    ).get("Messages"):
        messages += more
    return messages


def test_jobs_come_out_as_they_were_put_in(sqs: Any, urls: dict[str, str]) -> None:
    jobs = [job(number) for number in range(2 * MAX_BATCH + 1)]
    Queue(lambda: sqs, urls["FanoutQueue"]).put(jobs)
    found = [Job.from_json(message["Body"]) for message in received(sqs, urls["FanoutQueue"])]
    assert sorted(found, key=lambda one: one.id) == sorted(jobs, key=lambda one: one.id)


def test_a_tenants_jobs_have_a_group_of_their_own(sqs: Any, urls: dict[str, str]) -> None:
    jobs = [job(1, "acme"), job(2, "acme"), job(3, "other"), job(4)]
    Queue(lambda: sqs, urls["FanoutQueue"]).put(jobs)
    groups = {
        next(iter(json.loads(message["Body"])["requests"])): message["Attributes"]["MessageGroupId"]
        for message in received(sqs, urls["FanoutQueue"])
    }
    assert groups["message-1"] == groups["message-2"]
    assert len(set(groups.values())) == 3


def test_a_job_that_is_never_deleted_ends_among_the_dead_letters(
    sqs: Any, urls: dict[str, str]
) -> None:
    Queue(lambda: sqs, urls["FanoutQueue"]).put([job(1)])
    for _ in range(MAX_RECEIVES):
        [_message] = sqs.receive_message(QueueUrl=urls["FanoutQueue"], VisibilityTimeout=0)[
            "Messages"
        ]
    assert "Messages" not in sqs.receive_message(QueueUrl=urls["FanoutQueue"])
    [dead] = received(sqs, urls["FanoutDeadLetterQueue"])
    assert Job.from_json(dead["Body"]).requests == {"message-1": 1}


def test_a_queue_that_does_not_exist_is_unavailable(sqs: Any) -> None:
    queue = Queue(lambda: sqs, "https://sqs.us-east-1.amazonaws.com/123456789012/nowhere")
    with pytest.raises(Unavailable, match="the queue is unreachable"):
        queue.put([job(1)])


def test_a_queue_that_goes_by_its_name_is_looked_up_once(sqs: Any, urls: dict[str, str]) -> None:
    counted = Counted(sqs)
    queue = Queue(lambda: counted, "herald-fanout")
    queue.put([job(1)])
    queue.put([job(2)])
    assert counted.calls == ["get_queue_url", "send_message_batch", "send_message_batch"]
    assert len(received(sqs, urls["FanoutQueue"])) == 2


def test_a_name_that_no_queue_has_is_unavailable(sqs: Any) -> None:
    with pytest.raises(Unavailable, match="the queue is unreachable"):
        Queue(lambda: sqs, "nowhere").put([job(1)])


@pytest.fixture
def batch(sqs: Any, urls: dict[str, str]) -> list[dict[str, Any]]:
    """Three jobs as Lambda hands them to a worker; each is visible again at once."""
    url = urls["FanoutQueue"]
    Queue(lambda: sqs, url).put([job(number) for number in range(3)])
    answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0)
    return [
        {"messageId": one["MessageId"], "receiptHandle": one["ReceiptHandle"], "body": one["Body"]}
        for one in answer["Messages"]
    ]


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_failed_jobs_of_a_batch_come_again_and_no_others(
    sqs: Any, urls: dict[str, str], batch: list[dict[str, Any]], failures: int
) -> None:
    url, failed = urls["FanoutQueue"], batch[:failures]
    with pytest.raises(JobsFailed, match=f"^{failures} of 3 jobs come again$"):
        Queue(lambda: sqs, url).settle(batch, [one["messageId"] for one in failed])
    assert sorted(one["Body"] for one in received(sqs, url)) == sorted(
        one["body"] for one in failed
    )


def test_a_batch_without_a_failure_costs_no_call(
    sqs: Any, urls: dict[str, str], batch: list[dict[str, Any]]
) -> None:
    counted = Counted(sqs)
    Queue(lambda: counted, urls["FanoutQueue"]).settle(batch, [])
    assert counted.calls == []  # Lambda deletes the batch


def test_a_queue_that_can_not_be_settled_is_unavailable(
    sqs: Any, batch: list[dict[str, Any]]
) -> None:
    with pytest.raises(Unavailable, match="the queue is unreachable"):
        Queue(lambda: sqs, "nowhere").settle(batch, [batch[0]["messageId"]])
