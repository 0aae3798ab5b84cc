"""Lambda's event source mappings: invoke functions with the messages of their SQS queues.

https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from gateway.aws.variables import ACCOUNT, REGION
from gateway.functions.declarations import QueueTrigger
from gateway.functions.environments import Environments
from gateway.functions.execution_environment import FunctionError
from gateway.log import log_line

MAX_PARALLEL_BATCHES = 5
"""The number of parallel invocations for one queue, as many as Lambda begins with."""
MAX_MESSAGES = 10
"""The maximum number of messages that one SQS call receives or deletes."""
WAIT_SECONDS = 1
"""The time that one SQS call waits for messages."""
PAUSE_SECONDS = 1.0
"""Between two looks at the declarations, and after a queue could not be read."""


async def run_queues(environments: Environments, sqs: Any, endpoint: str) -> None:
    """Invoke the functions that the app declares for queues, until this is cancelled.

    Args:
        environments: Where the functions run.
        sqs: An SDK client of SQS.
        endpoint: The URL of SQS, which the queues' URLs begin with.
    """
    mappings: dict[str, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            for function in environments.declared["queues"]:
                if function not in mappings or mappings[function].done():
                    mapping = _EventSourceMapping(environments, sqs, endpoint, function)
                    mappings[function] = tasks.create_task(mapping.run())
            await asyncio.sleep(PAUSE_SECONDS)


class _EventSourceMapping:
    """One queue and its function."""

    def __init__(self, environments: Environments, sqs: Any, endpoint: str, function: str) -> None:
        self._environments = environments
        self._sqs = sqs
        self._endpoint = endpoint
        self._function = function

    async def run(self) -> None:
        """Invoke the function while it is declared. A reload may change its trigger."""
        free = asyncio.Semaphore(MAX_PARALLEL_BATCHES)
        async with asyncio.TaskGroup() as invocations:
            while self._function in self._environments.declared["queues"]:
                trigger = self._environments.declared["queues"][self._function]
                url = f"{self._endpoint}/{ACCOUNT}/{trigger['queue']}"
                await free.acquire()
                try:
                    messages = await self._receive_batch(url, trigger)
                except (BotoCoreError, ClientError) as error:
                    log_line("ERROR", f"the queue {trigger['queue']} can't be read: {error}")
                    await asyncio.sleep(PAUSE_SECONDS)
                    messages = []
                if not messages:
                    free.release()
                    continue
                invocation = invocations.create_task(self._process(url, messages))
                invocation.add_done_callback(lambda _: free.release())

    async def _receive_batch(self, url: str, trigger: QueueTrigger) -> list[dict[str, Any]]:
        """Receive messages until the batch is full or the batching window ends."""
        size = trigger["batchSize"]
        messages = await self._receive(url, min(size, MAX_MESSAGES), WAIT_SECONDS)
        end = time.monotonic() + trigger["batchSeconds"]
        while messages and len(messages) < size and (left := end - time.monotonic()) > 0:
            messages += await self._receive(
                url, min(size - len(messages), MAX_MESSAGES), min(WAIT_SECONDS, int(left))
            )
            await asyncio.sleep(min(left, 0.05))
        return messages

    async def _receive(
        self, url: str, max_messages: int, wait_seconds: int
    ) -> list[dict[str, Any]]:
        response = await asyncio.to_thread(
            self._sqs.receive_message,
            QueueUrl=url,
            MaxNumberOfMessages=max_messages,
            WaitTimeSeconds=wait_seconds,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        messages: list[dict[str, Any]] = response.get("Messages", [])
        return messages

    async def _process(self, url: str, messages: list[dict[str, Any]]) -> None:
        """Invoke the function with a batch, and delete the messages that it processed.

        The other messages become visible again, however the function failed.
        """
        event = {"Records": [_record(url, message) for message in messages]}
        log_line("QUEUE", f"{url.rpartition('/')[2]}  {len(messages)} → {self._function}")
        try:
            result = await self._environments.invoke(self._function, event)
        except FunctionError as error:
            log_line("ERROR", f"{self._function} failed: {error}")
            return
        failed = _failed_ids(result)
        if failed is None:
            log_line(
                "ERROR", f"{self._function} returned failures that Lambda can't read: {result}"
            )
            return
        await self._delete(
            url, [message for message in messages if message["MessageId"] not in failed]
        )

    async def _delete(self, url: str, messages: list[dict[str, Any]]) -> None:
        for start in range(0, len(messages), MAX_MESSAGES):
            entries = [
                {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]}
                for index, message in enumerate(messages[start : start + MAX_MESSAGES])
            ]
            try:
                await asyncio.to_thread(
                    self._sqs.delete_message_batch, QueueUrl=url, Entries=entries
                )
            except (BotoCoreError, ClientError) as error:
                log_line("ERROR", f"messages of {url} will be delivered again: {error}")


def _failed_ids(result: Any) -> set[str] | None:
    """Return the ids that a function reports as failed; None if Lambda counts all as failed."""
    failures = result.get("batchItemFailures") if isinstance(result, dict) else None
    if not failures:
        return set()
    ids = {failure.get("itemIdentifier") for failure in failures}
    return None if ids & {None, ""} else ids


def _record(url: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as Lambda's event has it."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message["Attributes"],
        "messageAttributes": message.get("MessageAttributes", {}),
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{url.rpartition('/')[2]}",
        "awsRegion": REGION,
    }
