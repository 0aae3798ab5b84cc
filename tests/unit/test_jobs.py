"""Jobs in SQS, through the SDK and back out of the queue."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.session import Session

from chalicelib.audience import Part, Source
from chalicelib.errors import Unavailable
from chalicelib.jobs import MAX_BATCH, MAX_RECEIVES, Job, Queue, Route
from chalicelib.sdk import sdk_client
from gateway.emulator import create_queues


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
    return Job({f"message-{number}": number}, Route(tenant, Source.EVERYONE, Part(0, 1, "")))


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
