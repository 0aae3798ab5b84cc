"""Notices: what a user is told of their own connections, over the others and over SNS."""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from chalicelib import aws_limits
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Delivery, Outcome, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.strict_json import encode
from chalicelib.store.audience import Audiences
from chalicelib.store.items import Recipient

if TYPE_CHECKING:
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sns.type_defs import MessageAttributeValueTypeDef

PUBLISH_BATCH = aws_limits.SNS_BATCH

logger = logging.getLogger("herald.notify")


class Removed(NamedTuple):
    """A connection that was removed against its user's will, and why."""

    recipient: Recipient
    reason: str

    def to_frame(self) -> dict[str, object]:
        """The notice, as the user's other connections and the topic get it."""
        return {
            "type": "notice",
            "code": "connection_removed",
            "connectionId": self.recipient.connection_id,
            "reason": self.reason,
        }


class Topic:
    """An SNS topic; a notice's message has its user and tenant as attributes."""

    def __init__(self, client: Callable[[], "SNSClient"], arn: str) -> None:
        """`client` is asked at the first notice: most invocations have none."""
        self._client = client
        self._arn = arn

    def publish(self, removed: Sequence[Removed]) -> None:
        """Publish notices. What fails is logged: it must not fail the delivery that it is about."""
        notices = iter(removed)
        while batch := list(islice(notices, PUBLISH_BATCH)):
            try:
                answer = self._client().publish_batch(
                    TopicArn=self._arn,
                    PublishBatchRequestEntries=[
                        {
                            "Id": str(index),
                            "Message": json.dumps(notice.to_frame()),
                            "MessageAttributes": _attributes(notice.recipient),
                        }
                        for index, notice in enumerate(batch)
                    ],
                )
                for failed in answer["Failed"]:
                    logger.error("SNS refused a notice: %s", failed)
            except Exception:
                logger.exception("could not publish %d notices", len(batch))


class Notifier:
    """Tells users which of their connections were removed."""

    def __init__(self, *, audiences: Audiences, delivery: Delivery, topic: Topic | None) -> None:
        self._audiences = audiences
        self._delivery = delivery
        self._topic = topic

    def connections_removed(self, removed: Sequence[Removed], deadline: float) -> Iterator[Outcome]:
        """Tell the other live connections of each user, and the topic; what became of the frames.

        All of one tenant. `deadline`: see `Delivery.deliver`.
        """
        if self._topic is not None:
            self._topic.publish(removed)
        try:
            yield from self._delivery.deliver(self._parcels(removed), deadline)
        except Unavailable as error:
            logger.error("could not find out whom to notify: %s", error.detail)

    def _parcels(self, removed: Sequence[Removed]) -> Iterator[list[Parcel]]:
        gone = {notice.recipient.connection_id for notice in removed}
        by_user = defaultdict(list)
        for notice in removed:
            by_user[notice.recipient.user_id].append(frame_of(encode(notice.to_frame())))
        tenant = removed[0].recipient.tenant
        for recipients in self._audiences.of_users(list(by_user), tenant):
            yield [
                Parcel(recipient, tuple(by_user[recipient.user_id]))
                for recipient in recipients
                if recipient.connection_id not in gone
            ]


def _attributes(recipient: Recipient) -> "dict[str, MessageAttributeValueTypeDef]":
    attributes: dict[str, MessageAttributeValueTypeDef] = {
        "userId": {"DataType": "String", "StringValue": recipient.user_id}
    }
    if recipient.tenant is not None:
        attributes["tenant"] = {"DataType": "String", "StringValue": recipient.tenant}
    return attributes
