"""Lambda's event source mappings: hands what waits in SQS queues to the functions that take it.

https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from gateway.api.events import ACCOUNT, REGION
from gateway.aws.emulator import client
from gateway.functions.environments import Environments, FunctionError
from gateway.log import log_line

AT_ONCE = 5  # invocations for a queue; Lambda begins with so many, too
MAX_RECEIVE = 10  # messages that one call can have
WAIT_SECONDS = 1
PAUSE_SECONDS = 1.0  # after a queue could not be read

Source = dict[str, Any]
"""What the app declares of a queue's function: `queue`, `batchSize` and `batchSeconds`."""


async def run_queues(environments: Environments, aws: Mapping[str, str]) -> None:
    """Feed the functions that take from queues, as far as the app declares any, until cancelled."""
    sqs = client("sqs", aws)
    mappings: dict[str, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            for function in environments.declared["queues"]:
                if function not in mappings or mappings[function].done():
                    mapping = _Mapping(environments, sqs, aws["AWS_ENDPOINT_URL"], function)
                    mappings[function] = tasks.create_task(mapping.run())
            await asyncio.sleep(PAUSE_SECONDS)


class _Mapping:
    """One queue and its function."""

    def __init__(self, environments: Environments, sqs: Any, endpoint: str, function: str) -> None:
        self._environments = environments
        self._sqs = sqs
        self._endpoint = endpoint
        self._function = function

    async def run(self) -> None:
        """Feed the function while it is declared; how, may change when the code does."""
        free = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as invocations:
            while self._function in self._environments.declared["queues"]:
                source: Source = self._environments.declared["queues"][self._function]
                url = f"{self._endpoint}/{ACCOUNT}/{source['queue']}"
                await free.acquire()
                try:
                    messages = await self._receive(url, source)
                except (BotoCoreError, ClientError) as error:
                    log_line("ERROR", f"the queue {source['queue']} can't be read: {error}")
                    await asyncio.sleep(PAUSE_SECONDS)
                    messages = []
                if not messages:
                    free.release()
                    continue
                task = invocations.create_task(self._invoke(url, messages))
                task.add_done_callback(lambda _: free.release())

    async def _receive(self, url: str, source: Source) -> list[dict[str, Any]]:
        """A batch: what is there, or comes while the batching window is open."""
        size = source["batchSize"]
        messages = await self._receive_some(url, min(size, MAX_RECEIVE), WAIT_SECONDS)
        end = time.monotonic() + source["batchSeconds"]
        while messages and len(messages) < size and (left := end - time.monotonic()) > 0:
            messages += await self._receive_some(
                url, min(size - len(messages), MAX_RECEIVE), min(WAIT_SECONDS, int(left))
            )
            await asyncio.sleep(min(left, 0.05))
        return messages

    async def _receive_some(self, url: str, most: int, wait: int) -> list[dict[str, Any]]:
        answer = await asyncio.to_thread(
            self._sqs.receive_message,
            QueueUrl=url,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=wait,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        received: list[dict[str, Any]] = answer.get("Messages", [])
        return received

    async def _invoke(self, url: str, messages: list[dict[str, Any]]) -> None:
        """Invoke the function with a batch, and delete what it has done. The rest comes again when
        it is visible again, however the function failed."""
        event = {"Records": [_record(url, message) for message in messages]}
        log_line("QUEUE", f"{url.rpartition('/')[2]}  {len(messages)} → {self._function}")
        try:
            result = await self._environments.invoke(self._function, event)
        except FunctionError as error:
            log_line("ERROR", f"{self._function} failed: {error}")
            return
        failed = _failed(result)
        if failed is None:
            log_line("ERROR", f"{self._function} reports failures as Lambda can't read: {result}")
            return
        done = [message for message in messages if message["MessageId"] not in failed]
        for start in range(0, len(done), MAX_RECEIVE):
            entries = [
                {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]}
                for index, message in enumerate(done[start : start + MAX_RECEIVE])
            ]
            try:
                await asyncio.to_thread(
                    self._sqs.delete_message_batch, QueueUrl=url, Entries=entries
                )
            except (BotoCoreError, ClientError) as error:
                log_line("ERROR", f"messages of {url} come again: {error}")


def _failed(result: Any) -> set[str] | None:
    """The ids that a function reports as failed; None where Lambda takes all for failed."""
    failures = result.get("batchItemFailures") if isinstance(result, dict) else None
    if not failures:
        return set()
    ids = {failure.get("itemIdentifier") for failure in failures}
    return None if ids & {None, ""} else ids


def _record(url: str, message: Mapping[str, Any]) -> dict[str, Any]:
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
