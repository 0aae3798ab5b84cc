"""The fan-out's queue: an SQS queue of jobs, each of which delivers to a shard of an audience.

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
from typing import TYPE_CHECKING, Any, NamedTuple
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
MAX_RECEIVES = 5  # the queue's `maxReceiveCount`: after that many failures, a dead letter

logger = logging.getLogger("herald.jobs")


class Target(NamedTuple):
    """The recipients of a job. Jobs with equal targets read the same, so workers batch them."""

    tenant: str | None
    source: Source
    shard: Shard


@dataclass(frozen=True, slots=True)
class Job:
    """A job: deliver the messages of `requests` to `target`.

    `requests` maps a request, by the id of its first message, to the size of its messages in bytes.
    `id` differs between jobs for the same shard of a request, and stays the same when SQS delivers
    the job again.
    """

    requests: Mapping[str, int]
    target: Target
    id: str = field(default_factory=lambda: uuid4().hex)

    def to_json(self) -> str:
        """Return the job as the body of an SQS message."""
        target = self.target
        return encode(
            {
                "id": self.id,
                "requests": self.requests,
                "tenant": target.tenant,
                "source": target.source,
                "shard": target.shard.number,
                "shards": target.shard.shards,
                "after": target.shard.after,
            }
        ).decode()

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Parse what `to_json` returned. Raises ValueError for other text."""
        try:
            fields: dict[str, Any] = json.loads(text)
            tenant = None if fields["tenant"] is None else str(fields["tenant"])
            shard = Shard(int(fields["shard"]), int(fields["shards"]), str(fields["after"]))
            requests = {request: int(size) for request, size in fields["requests"].items()}
            target = Target(tenant, Source(fields["source"]), shard)
            return cls(requests, target, str(fields["id"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError("the body is not a Herald job") from error


class ReceivedJob(NamedTuple):
    """A job as SQS delivered it; `receives` counts its deliveries, including this one."""

    message_id: str
    receives: int
    job: Job

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ReceivedJob":
        """Read a record of a Lambda event. Raises ValueError if its body is not a job.

        https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
        """
        receives = int(record["attributes"]["ApproximateReceiveCount"])
        return cls(record["messageId"], receives, Job.from_json(record["body"]))


class JobsFailed(Exception):
    """Some jobs of a Lambda event failed; SQS delivers them again."""


class Queue:
    """The SQS queue of jobs."""

    def __init__(self, client: Callable[[], "SQSClient"], url: str) -> None:
        """Take the ports.

        Args:
            client: Returns the SQS client; called when it is first needed, since few requests do.
            url: The queue's URL, or its name; the URL of a name is looked up when it is needed.
        """
        self._client = client
        self._url = url

    def put(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the queue. Raises Unavailable; some jobs may be in the queue then."""
        remaining = iter(jobs)
        while batch := list(islice(remaining, MAX_BATCH)):
            self._put(batch)

    def settle(self, records: Sequence[Mapping[str, Any]], failed: Collection[str]) -> None:
        """Make SQS deliver the failed jobs of a Lambda event again, and only these.

        The caller has to let JobsFailed propagate to Lambda. Then Lambda deletes none of the
        event's jobs, whether or not the event source mapping reports failures one by one. So this
        method deletes the jobs that succeeded.
        https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html

        Args:
            records: The records of the Lambda event.
            failed: The SQS message ids of the jobs that failed.

        Raises:
            JobsFailed: At least one job failed.
            Unavailable: SQS can't be reached; finished jobs that come again do nothing.
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
                self._client().delete_message_batch(QueueUrl=self._queue_url(), Entries=entries)
            except (BotoCoreError, ClientError) as error:
                raise _unreachable(error) from error
        raise JobsFailed(f"{len(failed)} of {len(records)} jobs failed and will be retried")

    def _put(self, batch: Sequence[Job]) -> None:
        entries: list[Any] = [
            {
                "Id": str(index),
                "MessageBody": job.to_json(),
                # SQS prefers the groups with few messages in flight ("fair queues"):
                # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-fair-queues.html
                "MessageGroupId": hashlib.sha256(repr(job.target.tenant).encode()).hexdigest(),
            }
            for index, job in enumerate(batch)
        ]
        for attempt in range(TRIES):
            try:
                url = self._queue_url()
                answer = self._client().send_message_batch(QueueUrl=url, Entries=entries)
            except (BotoCoreError, ClientError) as error:
                raise _unreachable(error) from error
            failed = {entry["Id"]: entry for entry in answer.get("Failed", [])}
            if not failed:
                return
            logger.warning("the queue rejected %d jobs: %s", len(failed), list(failed.values()))
            entries = [entry for entry in entries if entry["Id"] in failed]
            time.sleep(random.uniform(0, BACKOFF_SECONDS * 2**attempt))
        raise Unavailable("the queue rejects jobs", retry_after=1.0)

    def _queue_url(self) -> str:
        """Return the queue's URL. Raises the SDK's errors if the lookup of a name fails."""
        if "://" not in self._url:
            self._url = self._client().get_queue_url(QueueName=self._url)["QueueUrl"]
        return self._url


def _unreachable(error: Exception) -> Unavailable:
    """Log an error of the SDK, and return the one for callers."""
    logger.error("the queue is unreachable: %s", error)
    return Unavailable("the queue is unreachable", retry_after=1.0)
