"""Lambda's event source mappings: hands what waits in SQS queues to the functions that take it.

https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from gateway.emulator import client
from gateway.environments import Environments, FunctionError
from gateway.events import ACCOUNT, REGION
from gateway.log import log_line

AT_ONCE = 5  # invocations for a queue; Lambda begins with so many, too
MAX_RECEIVE = 10  # messages that one call can have
WAIT_SECONDS = 1
PAUSE_SECONDS = 1.0  # after a queue could not be read

Source = dict[str, Any]
"""What the app declares of a queue's function: `queue`, `batchSize` and `batchSeconds`."""


async def run_queues(environments: Environments, aws: Mapping[str, str]) -> None:
    """Feed the functions that take from queues, until cancelled."""
    sqs = client("sqs", aws)
    async with asyncio.TaskGroup() as tasks:
        for function, source in environments.declared["queues"].items():
            tasks.create_task(_Mapping(environments, sqs, function, source).run())


class _Mapping:
    """One queue and its function."""

    def __init__(self, environments: Environments, sqs: Any, function: str, source: Source) -> None:
        self._environments = environments
        self._sqs = sqs
        self._function = function
        self._source = source
        self._url = ""

    async def run(self) -> None:
        free = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as invocations:
            while True:
                await free.acquire()
                try:
                    messages = await self._receive()
                except (BotoCoreError, ClientError) as error:
                    log_line("ERROR", f"the queue {self._source['queue']} can't be read: {error}")
                    await asyncio.sleep(PAUSE_SECONDS)
                    messages = []
                if not messages:
                    free.release()
                    continue
                task = invocations.create_task(self._invoke(messages))
                task.add_done_callback(lambda _: free.release())

    async def _receive(self) -> list[dict[str, Any]]:
        """A batch: what is there, or comes while the batching window is open."""
        if not self._url:
            answer = await asyncio.to_thread(
                self._sqs.get_queue_url, QueueName=self._source["queue"]
            )
            self._url = answer["QueueUrl"]
        size = self._source["batchSize"]
        messages = await self._receive_some(min(size, MAX_RECEIVE), WAIT_SECONDS)
        end = time.monotonic() + self._source["batchSeconds"]
        while messages and len(messages) < size and (left := end - time.monotonic()) > 0:
            messages += await self._receive_some(
                min(size - len(messages), MAX_RECEIVE), min(WAIT_SECONDS, int(left))
            )
            await asyncio.sleep(min(left, 0.05))
        return messages

    async def _receive_some(self, most: int, wait: int) -> list[dict[str, Any]]:
        answer = await asyncio.to_thread(
            self._sqs.receive_message,
            QueueUrl=self._url,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=wait,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        received: list[dict[str, Any]] = answer.get("Messages", [])
        return received

    async def _invoke(self, messages: list[dict[str, Any]]) -> None:
        """Invoke the function with a batch, and delete what it has done. The rest comes again when
        it is visible again, however the function failed."""
        event = {"Records": [self._record(message) for message in messages]}
        try:
            result = await self._environments.invoke(self._function, event)
        except FunctionError as error:
            log_line("ERROR", f"{self._function} failed: {error}")
            return
        failures = (result or {}).get("batchItemFailures", [])
        failed = {failure["itemIdentifier"] for failure in failures}
        done = [message for message in messages if message["MessageId"] not in failed]
        for start in range(0, len(done), MAX_RECEIVE):
            entries = [
                {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]}
                for index, message in enumerate(done[start : start + MAX_RECEIVE])
            ]
            try:
                await asyncio.to_thread(
                    self._sqs.delete_message_batch, QueueUrl=self._url, Entries=entries
                )
            except (BotoCoreError, ClientError) as error:
                log_line("ERROR", f"messages of {self._source['queue']} come again: {error}")

    def _record(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": message.get("MessageAttributes", {}),
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{self._source['queue']}",
            "awsRegion": REGION,
        }
