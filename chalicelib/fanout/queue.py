"""The queue of the fan-out: jobs that go through SQS, each a shard of an audience to deliver to.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/standard-queues.html
"""

import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from chalicelib import aws_limits
from chalicelib.errors import Unavailable
from chalicelib.protocol.strict_json import encode
from chalicelib.store.audience import Shard, Source

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

MAX_BATCH = aws_limits.SQS_BATCH  # a job has only some hundred bytes
TRIES = 3
BACKOFF_SECONDS = 0.1
MAX_RECEIVES = 5  # the queue's `maxReceiveCount`: a job that failed so often is a dead letter

logger = logging.getLogger("herald.jobs")


@dataclass(frozen=True, slots=True)
class Route:
    """Which recipients: jobs with the same route read the same, and can be done together."""

    tenant: str | None
    source: Source
    shard: Shard


@dataclass(frozen=True, slots=True)
class Job:
    """Deliver the messages of `requests` along a route.

    A request goes by the id of its first message; beside it, the size of its messages, in bytes.
    `id` tells a job from another for the same shard of the same request, and stays when SQS brings
    the job again.
    """

    requests: Mapping[str, int]
    route: Route
    id: str = field(default_factory=lambda: uuid4().hex)

    def to_json(self) -> str:
        route = self.route
        return encode(
            {
                "id": self.id,
                "requests": self.requests,
                "tenant": route.tenant,
                "source": route.source,
                "shard": route.shard.number,
                "shards": route.shard.shards,
                "after": route.shard.after,
            }
        ).decode()

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The inverse of `to_json`. Raises ValueError for what is no job."""
        try:
            fields: dict[str, Any] = json.loads(text)
            tenant = None if fields["tenant"] is None else str(fields["tenant"])
            shard = Shard(int(fields["shard"]), int(fields["shards"]), str(fields["after"]))
            requests = {request: int(size) for request, size in fields["requests"].items()}
            return cls(requests, Route(tenant, Source(fields["source"]), shard), str(fields["id"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError("not a job of Herald's") from error


@dataclass(frozen=True, slots=True)
class ReceivedJob:
    """A job as SQS hands it out: `receives` counts how often, this time included."""

    message_id: str
    body: str
    receives: int

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ReceivedJob":
        """Of a record of a Lambda event.
        https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html"""
        receives = int(record["attributes"]["ApproximateReceiveCount"])
        return cls(record["messageId"], record["body"], receives)


class JobsFailed(Exception):
    """Some jobs of a batch have to come again."""


class Queue:
    """An SQS queue to put jobs into."""

    def __init__(self, client: Callable[[], "SQSClient"], url: str) -> None:
        """`client` makes the client at its first use: few requests need one. `url` may be the
        queue's name; its URL is then looked up at the first use."""
        self._client = client
        self._url = url

    def settle(self, records: Sequence[Mapping[str, Any]], failed: Collection[str]) -> None:
        """Have SQS hand out the failed jobs of a batch again, and no other.

        `records` are those of the Lambda event; `failed` has the ids of messages. The function
        that SQS invoked raises the error on: then Lambda deletes nothing of the batch by itself,
        whether the event source mapping reports failures one by one or not. So this deletes what
        is done. https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html

        Raises JobsFailed where any failed, and Unavailable.
        """
        if not failed:
            return
        done = [record for record in records if record["messageId"] not in failed]
        if done:
            entries: list[Any] = [
                {"Id": str(index), "ReceiptHandle": record["receiptHandle"]}
                for index, record in enumerate(done)
            ]
            try:
                self._client().delete_message_batch(QueueUrl=self._found_url(), Entries=entries)
            except (BotoCoreError, ClientError) as error:  # done jobs come again, and do nothing
                raise _unreachable(error) from error
        raise JobsFailed(f"{len(failed)} of {len(records)} jobs come again")

    def _found_url(self) -> str:
        """The queue's URL. Raises BotoCoreError or ClientError where it can't be looked up."""
        if "://" not in self._url:
            self._url = self._client().get_queue_url(QueueName=self._url)["QueueUrl"]
        return self._url

    def put(self, jobs: Sequence[Job]) -> None:
        """Put all jobs in; some may be in when that fails. Raises Unavailable."""
        following = iter(jobs)
        while batch := list(islice(following, MAX_BATCH)):
            self._put(batch)

    def _put(self, batch: Sequence[Job]) -> None:
        entries: list[Any] = [
            {
                "Id": str(index),
                "MessageBody": job.to_json(),
                # SQS then hands out first whose tenant has few in work ("fair queues"):
                # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-fair-queues.html
                "MessageGroupId": hashlib.sha256(repr(job.route.tenant).encode()).hexdigest(),
            }
            for index, job in enumerate(batch)
        ]
        for attempt in range(TRIES):
            try:
                url = self._found_url()
                answer = self._client().send_message_batch(QueueUrl=url, Entries=entries)
            except (BotoCoreError, ClientError) as error:
                raise _unreachable(error) from error
            failed = {entry["Id"]: entry for entry in answer.get("Failed", [])}
            if not failed:
                return
            logger.warning("the queue refused %d jobs: %s", len(failed), list(failed.values()))
            entries = [entry for entry in entries if entry["Id"] in failed]
            time.sleep(random.uniform(0, BACKOFF_SECONDS * 2**attempt))
        raise Unavailable("the queue refuses jobs", retry_after=1.0)


def _unreachable(error: Exception) -> Unavailable:
    """The error for callers, of one that is logged."""
    logger.error("the queue is unreachable: %s", error)
    return Unavailable("the queue is unreachable", retry_after=1.0)
