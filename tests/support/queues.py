"""How soon the local gateway's queue hands a job to another worker."""

from typing import Any

from gateway.functions.queues import WAIT_SECONDS


def hide_jobs_for(seconds: int, sqs: Any, url: str) -> None:
    """How long the queue waits for a worker, for all that it hands out from here on."""
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": str(seconds)})
    # A call that waits for jobs has the old time. This one ends after each that began before it.
    sqs.receive_message(QueueUrl=url, WaitTimeSeconds=WAIT_SECONDS, VisibilityTimeout=0)
