"""Notifies users about their own connections, over their other connections and over SNS."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from chalicelib import aws_limits
from chalicelib.delivery.frames import Frame, frame_of
from chalicelib.delivery.parcel import Delivery, Outcome, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.server_frames import ServerFrame, connection_removed
from chalicelib.protocol.strict_json import encode
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.audience import Audiences
from chalicelib.store.items import Recipient

if TYPE_CHECKING:
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sns.type_defs import MessageAttributeValueTypeDef

PUBLISH_BATCH = aws_limits.SNS_BATCH

logger = logging.getLogger("herald.notices")

_FramesByUser = defaultdict[str, list[Frame]]


class Removed(NamedTuple):
    """A connection that was removed against its user's will, and why."""

    recipient: Recipient
    reason: str

    def to_frame(self) -> ServerFrame:
        """Return the notice, as the user's other connections and the topic get it."""
        return connection_removed(self.recipient.connection_id, self.reason)


class Topic:
    """An SNS topic. Its messages have the user and the tenant as attributes."""

    def __init__(self, client: Callable[[], "SNSClient"], arn: str) -> None:
        """Take `client`, which is called for the first notice: most invocations send none."""
        self._client = client
        self._arn = arn

    def publish(self, removed: Sequence[Removed]) -> None:
        """Publish notices. Errors are only logged, since the delivery itself must not fail."""
        notices = iter(removed)
        while batch := list(islice(notices, PUBLISH_BATCH)):
            try:
                response = self._client().publish_batch(
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
                for failed in response["Failed"]:
                    logger.error("SNS rejected a notice: %s", failed)
            except Exception:
                logger.exception("could not publish %d notices", len(batch))


class Notifier:
    """Notifies users about the removal of their connections."""

    def __init__(self, *, audiences: Audiences, delivery: Delivery, topic: Topic | None) -> None:
        self._audiences = audiences
        self._delivery = delivery
        self._topic = topic

    def notify_removed(self, removed: Sequence[Removed], deadline: Deadline) -> Iterator[Outcome]:
        """Send notices to each user's other connections and to the topic; yield the outcomes.

        A notice stays within the tenant of its connection. `deadline`: see `Delivery.deliver`.
        """
        if self._topic is not None:
            self._topic.publish(removed)
        try:
            yield from self._delivery.deliver(self._parcels(removed), deadline)
        except Unavailable as error:
            logger.error("could not read the connections to notify: %s", error.detail)

    def _parcels(self, removed: Sequence[Removed]) -> Iterator[list[Parcel]]:
        removed_ids = {notice.recipient.connection_id for notice in removed}
        tenants: defaultdict[str | None, _FramesByUser] = defaultdict(lambda: defaultdict(list))
        for notice in removed:
            recipient = notice.recipient
            frame = frame_of(encode(notice.to_frame()))
            tenants[recipient.tenant][recipient.user_id].append(frame)
        for tenant, frames_by_user in tenants.items():
            for recipients in self._audiences.of_users(list(frames_by_user), tenant):
                now = time.time()
                yield [
                    Parcel(recipient, tuple(frames_by_user[recipient.user_id]))
                    for recipient in recipients
                    if recipient.connection_id not in removed_ids and recipient.token_until > now
                ]


def _attributes(recipient: Recipient) -> "dict[str, MessageAttributeValueTypeDef]":
    attributes: dict[str, MessageAttributeValueTypeDef] = {
        "userId": {"DataType": "String", "StringValue": recipient.user_id}
    }
    if recipient.tenant is not None:
        attributes["tenant"] = {"DataType": "String", "StringValue": recipient.tenant}
    return attributes
