"""The visibility timeout of the local gateway's queue."""

from typing import Any

from gateway.functions.queues import WAIT_SECONDS


def hide_jobs_for(seconds: int, sqs: Any, url: str) -> None:
    """Set how long a job is hidden after a worker got it, for all jobs from now on."""
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": str(seconds)})
    # A call that is already waiting for jobs uses the old value. This one ends after it.
    sqs.receive_message(QueueUrl=url, WaitTimeSeconds=WAIT_SECONDS, VisibilityTimeout=0)
