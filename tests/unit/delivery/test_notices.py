"""Notices over the user's other connections, and in SNS as a subscribed queue receives them."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
from botocore.session import Session

from chalicelib.delivery.notices import PUBLISH_BATCH, Notifier, Removed, Topic
from chalicelib.errors import Unavailable
from chalicelib.runtime.aws import sdk_client
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient
from tests.support.tables import recipient
from tests.unit.delivery.fakes import FakeDelivery


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
    """Create a topic and a queue that is subscribed to it; return the ARN and the queue's URL."""
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


@pytest.mark.parametrize(("tenant", "added"), [(None, {}), ("acme", {"tenant": "acme"})])
def test_a_notice_has_the_connection_and_its_owner(
    sns: Any, sqs: Any, tenant: str | None, added: dict[str, str]
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
    assert attributes == {"userId": "alice", **added}


def test_notices_arrive_even_if_they_are_more_than_a_batch(sns: Any, sqs: Any) -> None:
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


class FakeAudiences:
    """Finds each user's connections in one page."""

    def __init__(self, *recipients: Recipient, error: Unavailable | None = None) -> None:
        self._recipients = recipients
        self._error = error

    def of_users(self, users: Sequence[str], tenant: str | None) -> Iterator[list[Recipient]]:
        if self._error is not None:
            raise self._error
        yield [one for one in self._recipients if one.user_id in users and one.tenant == tenant]


def notifier(audiences: Any, delivery: FakeDelivery) -> Notifier:
    return Notifier(audiences=audiences, delivery=delivery, topic=None)


def test_a_notice_goes_to_the_users_other_connections_only() -> None:
    lost, other, stranger = (
        recipient("c-0", "alice"),
        recipient("c-1", "alice"),
        recipient("x", "bob"),
    )
    delivery = FakeDelivery()
    notices = notifier(FakeAudiences(lost, other, stranger), delivery)
    outcomes = list(notices.notify_removed([Removed(lost, "http_403")], Deadline.after(0)))
    assert [one.recipient for one in outcomes] == [other]
    [(connection_id, body)] = delivery.sent
    assert connection_id == "c-1"
    assert json.loads(body)["connectionId"] == "c-0"


def test_a_notice_stays_within_its_tenant() -> None:
    everyone = [
        recipient(f"{tenant}-{number}", "bob", tenant)
        for tenant in ("north", "south", None)
        for number in range(2)
    ]
    delivery = FakeDelivery()
    notices = notifier(FakeAudiences(*everyone), delivery)
    lost = [Removed(one, "http_403") for one in everyone[::2]]
    list(notices.notify_removed(lost, Deadline.after(0)))
    named = [(to, json.loads(body)["connectionId"]) for to, body in delivery.sent]
    assert named == [("north-1", "north-0"), ("south-1", "south-0"), ("None-1", "None-0")]


def test_a_connection_whose_token_has_expired_gets_no_notice() -> None:
    lost, other = recipient("c-0", "alice"), recipient("c-1", "alice")
    expired = other._replace(token_until=time.time())
    delivery = FakeDelivery()
    notices = notifier(FakeAudiences(lost, expired), delivery)
    assert list(notices.notify_removed([Removed(lost, "http_403")], Deadline.after(0))) == []


def test_the_topic_gets_each_notice_with_its_own_tenant(sns: Any, sqs: Any) -> None:
    topic, url = subscribed(sns, sqs)
    notices = Notifier(
        audiences=cast("Any", FakeAudiences()),
        delivery=FakeDelivery(),
        topic=Topic(lambda: sns, topic),
    )
    lost = [
        Removed(recipient(f"c-{tenant}", "bob", tenant), "http_403")
        for tenant in ("north", "south")
    ]
    list(notices.notify_removed(lost, Deadline.after(0)))
    found = {
        json.loads(one["Message"])["connectionId"]: one["MessageAttributes"]["tenant"]["Value"]
        for one in received(sqs, url)
    }
    assert found == {"c-north": "north", "c-south": "south"}


def test_connections_that_cannot_be_read_are_logged_and_not_notified(
    caplog: pytest.LogCaptureFixture,
) -> None:
    delivery = FakeDelivery()
    notices = notifier(FakeAudiences(error=Unavailable("storage failed")), delivery)
    assert list(notices.notify_removed(removed(1), Deadline.after(0))) == []
    assert "could not read the connections to notify: storage failed" in caplog.text
