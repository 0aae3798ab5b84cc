"""Functions with an SQS queue: their batches, retries and deletions."""

import asyncio
from typing import Any

import pytest

from gateway.functions.execution_environment import FunctionError
from gateway.functions.queues import MAX_PARALLEL_BATCHES, run_queues

TRIGGER = {"queue": "jobs", "batchSize": 10, "batchSeconds": 0}


class Queue:
    """An SQS client of a queue that hands out each message once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waiting = [f"m-{number}" for number in range(count)]
        self.urls: set[str] = set()
        self.deleted: list[str] = []

    def receive_message(self, QueueUrl: str, MaxNumberOfMessages: int, **_: Any) -> Any:  # noqa: N803
        self.urls.add(QueueUrl)
        taken = self.waiting[:MaxNumberOfMessages]
        del self.waiting[:MaxNumberOfMessages]
        messages = [
            {
                "MessageId": one,
                "ReceiptHandle": one,
                "Body": "{}",
                "Attributes": {},
                "MD5OfBody": "",
            }
            for one in taken
        ]
        return {"Messages": messages} if messages else {}

    def delete_message_batch(self, QueueUrl: str, Entries: list[Any]) -> None:  # noqa: N803
        self.deleted += [entry["ReceiptHandle"] for entry in Entries]


class Functions:
    """Stands in for the execution environments. `result` is called with each batch's ids."""

    def __init__(self, result: Any, trigger: Any = TRIGGER) -> None:
        self.declared = {"queues": {"work": trigger}}
        self.batches: list[list[str]] = []
        self.at_once = self.most_at_once = 0
        self._result = result

    async def invoke(self, function: str, event: Any) -> Any:
        assert function == "work"
        assert {one["eventSourceARN"] for one in event["Records"]} == {
            "arn:aws:sqs:us-east-1:000000000000:jobs"
        }
        ids = [one["messageId"] for one in event["Records"]]
        self.batches.append(ids)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        return self._result(ids)


def process(queue: Queue, functions: Any) -> None:
    """Process the queue until it is empty and the functions have ended."""

    async def run() -> None:
        processing = asyncio.create_task(run_queues(functions, queue, "http://127.0.0.1:1"))
        while sum(map(len, functions.batches)) < queue.count or functions.at_once:
            assert not processing.done()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        processing.cancel()
        await asyncio.gather(processing, return_exceptions=True)

    asyncio.run(run())


def test_batches_are_processed_in_parallel_and_deleted() -> None:
    queue, functions = Queue(100), Functions(lambda _: None)
    process(queue, functions)
    assert [len(batch) for batch in functions.batches] == [10] * 10
    assert functions.most_at_once == MAX_PARALLEL_BATCHES
    assert len(queue.deleted) == 100
    assert queue.urls == {"http://127.0.0.1:1/000000000000/jobs"}


def test_messages_that_are_reported_as_failed_stay_in_the_queue() -> None:
    failures = {"batchItemFailures": [{"itemIdentifier": "m-1"}]}
    queue, functions = Queue(3), Functions(lambda _: failures)
    process(queue, functions)
    assert queue.deleted == ["m-0", "m-2"]


@pytest.mark.parametrize("failure", [{}, {"itemIdentifier": ""}, {"itemIdentifier": None}])
def test_a_malformed_report_of_failures_keeps_the_whole_batch(failure: Any) -> None:
    """https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html"""
    queue, functions = Queue(3), Functions(lambda _: {"batchItemFailures": [failure]})
    process(queue, functions)
    assert queue.deleted == []


def test_a_batch_stays_in_the_queue_if_its_function_fails() -> None:
    def fail(_: list[str]) -> None:
        raise FunctionError("Runtime.ExitError", "it died")

    queue, functions = Queue(3), Functions(fail)
    process(queue, functions)
    assert queue.deleted == []
    assert functions.batches == [["m-0", "m-1", "m-2"]]


def test_a_batch_larger_than_one_call_is_collected_within_its_window() -> None:
    queue = Queue(25)
    functions = Functions(lambda _: None, {**TRIGGER, "batchSize": 20, "batchSeconds": 1})
    process(queue, functions)
    assert [len(batch) for batch in functions.batches] == [20, 5]
    assert len(queue.deleted) == 25
