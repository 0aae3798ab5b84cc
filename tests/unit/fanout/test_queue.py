"""Jobs are put into SQS through the SDK, and read back; failed ones are delivered again."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.session import Session

from chalicelib.errors import Unavailable
from chalicelib.fanout.queue import (
    MAX_BATCH,
    MAX_RECEIVES,
    TRIES,
    Job,
    JobsFailed,
    Queue,
    ReceivedJob,
    Target,
)
from chalicelib.runtime.aws import sdk_client
from chalicelib.store.audience import Shard, Source
from gateway.aws.emulator import create_queues
from tests.support.tables import Counted

RECEIVED_TWICE = {"ApproximateReceiveCount": "2"}


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
    return Job({f"message-{number}": number}, Target(tenant, Source.EVERYONE, Shard()))


def received(sqs: Any, url: str) -> list[Any]:
    messages: list[Any] = []
    while more := sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"]
    ).get("Messages"):
        messages += more
    return messages


def test_jobs_are_received_as_they_were_put(sqs: Any, urls: dict[str, str]) -> None:
    jobs = [job(number) for number in range(2 * MAX_BATCH + 1)]
    Queue(lambda: sqs, urls["FanoutQueue"]).put(jobs)
    found = [Job.from_json(message["Body"]) for message in received(sqs, urls["FanoutQueue"])]
    assert sorted(found, key=lambda one: one.id) == sorted(jobs, key=lambda one: one.id)


def test_each_tenant_has_a_message_group(sqs: Any, urls: dict[str, str]) -> None:
    jobs = [job(1, "acme"), job(2, "acme"), job(3, "other"), job(4)]
    Queue(lambda: sqs, urls["FanoutQueue"]).put(jobs)
    groups = {
        next(iter(json.loads(message["Body"])["requests"])): message["Attributes"]["MessageGroupId"]
        for message in received(sqs, urls["FanoutQueue"])
    }
    assert groups["message-1"] == groups["message-2"]
    assert len(set(groups.values())) == 3


def test_a_job_that_is_never_deleted_becomes_a_dead_letter(sqs: Any, urls: dict[str, str]) -> None:
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


def test_the_url_of_a_queues_name_is_looked_up_once(sqs: Any, urls: dict[str, str]) -> None:
    counted: Any = Counted(sqs)
    queue = Queue(lambda: counted, "herald-fanout")
    queue.put([job(1)])
    queue.put([job(2)])
    assert counted.calls == ["get_queue_url", "send_message_batch", "send_message_batch"]
    assert len(received(sqs, urls["FanoutQueue"])) == 2


def test_a_name_without_a_queue_is_unavailable(sqs: Any) -> None:
    with pytest.raises(Unavailable, match="the queue is unreachable"):
        Queue(lambda: sqs, "nowhere").put([job(1)])


@pytest.fixture
def event(sqs: Any, urls: dict[str, str]) -> list[dict[str, Any]]:
    """Three jobs as the records of a Lambda event; each is visible again at once."""
    url = urls["FanoutQueue"]
    Queue(lambda: sqs, url).put([job(number) for number in range(3)])
    answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0)
    return [
        {"messageId": one["MessageId"], "receiptHandle": one["ReceiptHandle"], "body": one["Body"]}
        for one in answer["Messages"]
    ]


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_only_the_failed_jobs_of_an_event_are_delivered_again(
    sqs: Any, urls: dict[str, str], event: list[dict[str, Any]], failures: int
) -> None:
    url, failed = urls["FanoutQueue"], event[:failures]
    with pytest.raises(JobsFailed, match=f"^{failures} of 3 jobs failed and will be retried$"):
        Queue(lambda: sqs, url).settle(event, [one["messageId"] for one in failed])
    assert sorted(one["Body"] for one in received(sqs, url)) == sorted(
        one["body"] for one in failed
    )


def test_an_event_without_failures_costs_no_call(
    sqs: Any, urls: dict[str, str], event: list[dict[str, Any]]
) -> None:
    counted: Any = Counted(sqs)
    Queue(lambda: counted, urls["FanoutQueue"]).settle(event, [])
    assert counted.calls == []  # Lambda deletes the jobs


def test_an_event_that_cannot_be_settled_is_unavailable(
    sqs: Any, event: list[dict[str, Any]]
) -> None:
    with pytest.raises(Unavailable, match="the queue is unreachable"):
        Queue(lambda: sqs, "nowhere").settle(event, [event[0]["messageId"]])


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"requests": 5}'])
def test_a_body_that_is_not_a_job_is_a_value_error(body: str) -> None:
    record = {"messageId": "1", "body": body, "attributes": {"ApproximateReceiveCount": "1"}}
    with pytest.raises(ValueError, match="the body is not a Herald job"):
        ReceivedJob.from_record(record)


def test_a_record_has_a_job_and_the_number_of_its_deliveries() -> None:
    one = job(1)
    record = {"messageId": "m", "body": one.to_json(), "attributes": RECEIVED_TWICE}
    assert ReceivedJob.from_record(record) == ReceivedJob("m", 2, one)


class Rejecting:
    """An SQS client whose queue rejects the second job of a batch a number of times."""

    def __init__(self, times: int) -> None:
        self.batches: list[list[str]] = []
        self._times = times

    def send_message_batch(self, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
        self.batches.append([entry["Id"] for entry in Entries])
        if len(self.batches) > self._times:
            return {}
        return {"Failed": [{"Id": "1", "Code": "InternalError", "SenderFault": False}]}


def test_rejected_jobs_are_sent_again() -> None:
    client: Any = Rejecting(times=1)
    Queue(lambda: client, "https://sqs.invalid/queue").put([job(1), job(2), job(3)])
    assert client.batches == [["0", "1", "2"], ["1"]]


def test_jobs_that_are_rejected_every_time_are_unavailable() -> None:
    client: Any = Rejecting(times=TRIES)
    with pytest.raises(Unavailable, match="the queue rejects jobs"):
        Queue(lambda: client, "https://sqs.invalid/queue").put([job(1), job(2)])
    assert len(client.batches) == TRIES
