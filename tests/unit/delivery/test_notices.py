"""Notices in SNS, as a queue that is subscribed to the topic receives them."""

import json
from typing import Any

import pytest
from botocore.session import Session

from chalicelib.delivery.notices import PUBLISH_BATCH, Removed, Topic
from chalicelib.runtime.aws import sdk_client
from tests.support.tables import recipient


@pytest.fixture
def sns(aws: None) -> Any:
    client = sdk_client(Session(), "sns")
    yield client
    client.close()


@pytest.fixture
def sqs(aws: None) -> Any:
    client = sdk_client(Session(), "sqs")
    yield client
    client.close()


def subscribed(sns: Any, sqs: Any) -> tuple[str, str]:
    """A topic's ARN, and the URL of a queue that is subscribed to it."""
    topic = sns.create_topic(Name="notices")["TopicArn"]
    url = sqs.create_queue(QueueName="notices")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["Attributes"]["QueueArn"])
    return topic, url


def received(sqs: Any, url: str) -> list[Any]:
    notices: list[Any] = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        notices += [json.loads(message["Body"]) for message in messages]
    return notices


def removed(count: int, tenant: str | None = None) -> list[Removed]:
    return [Removed(recipient(f"c-{number}", "alice", tenant), "gone") for number in range(count)]


@pytest.mark.parametrize(("tenant", "told"), [(None, {}), ("acme", {"tenant": "acme"})])
def test_a_notice_says_whose_connection_was_removed(
    sns: Any, sqs: Any, tenant: str | None, told: dict[str, str]
) -> None:
    topic, url = subscribed(sns, sqs)
    Topic(lambda: sns, topic).publish(removed(1, tenant))
    [notice] = received(sqs, url)
    assert json.loads(notice["Message"]) == {
        "type": "notice",
        "code": "connection_removed",
        "connectionId": "c-0",
        "reason": "gone",
    }
    attributes = {name: one["Value"] for name, one in notice["MessageAttributes"].items()}
    assert attributes == {"userId": "alice", **told}


def test_more_notices_than_a_batch_holds_all_arrive(sns: Any, sqs: Any) -> None:
    topic, url = subscribed(sns, sqs)
    count = 2 * PUBLISH_BATCH + 1
    Topic(lambda: sns, topic).publish(removed(count))
    ids = [json.loads(notice["Message"])["connectionId"] for notice in received(sqs, url)]
    assert sorted(ids) == sorted(f"c-{number}" for number in range(count))


def test_a_topic_that_does_not_exist_is_logged(sns: Any, caplog: pytest.LogCaptureFixture) -> None:
    topic = "arn:aws:sns:us-east-1:123456789012:nowhere"
    with caplog.at_level("ERROR", "herald"):
        Topic(lambda: sns, topic).publish(removed(1))
    assert "could not publish 1 notices" in caplog.text
    assert "NotFound" in caplog.text
