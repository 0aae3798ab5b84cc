"""The AWS services behind the local gateway, emulated by MiniStack in a process of its own.

The emulator listens on a free port of 127.0.0.1 only. A guard lets only those requests pass that
are signed with the emulator's random credentials. The emulator keeps its data in memory, also while
code reloads, and ends with the process that started it, however that one ends.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import boto3
from botocore.config import Config

from gateway.aws.signatures import random_credentials
from gateway.aws.variables import (
    ACCESS_KEY,
    QUEUE_URL,
    SECRET_KEY,
    leading_to,
)
from gateway.configuration import PROJECT
from gateway.local_hosts import ALLOWED_HOSTS
from gateway.machine.signals import without_interrupts
from infra.stage import BATCH_SECONDS, RESOURCES, TABLES, queues_and_tables

START_SECONDS = 30.0


@contextlib.asynccontextmanager
async def emulated_aws(app_variables: Mapping[str, str]) -> AsyncIterator[dict[str, str]]:
    """Run an emulator with Herald's tables and queues while the context lasts.

    Yields the variables that lead an SDK to it, with credentials of its own. Raises RuntimeError or
    TimeoutError if it doesn't start.

    Args:
        app_variables: The app's variables. They name the tables; an empty HERALD_FANOUT_QUEUE_URL
            leaves the queue out, so that every message is delivered at once.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        variables = leading_to(f"http://127.0.0.1:{port}", random_credentials(), app_variables)
        guarded = {name: variables[name] for name in (ACCESS_KEY, SECRET_KEY)}
        guarded[ALLOWED_HOSTS] = app_variables.get(ALLOWED_HOSTS, "")
        process = await _start_process(listener.fileno(), port, guarded)
    try:
        await _wait_until_healthy(process, port)
        await asyncio.to_thread(create_tables, client("dynamodb", variables), app_variables)
        queue_urls = await asyncio.to_thread(
            create_queues, client("sqs", variables), batch_seconds(app_variables)
        )
        if app_variables.get(QUEUE_URL) != "":
            variables[QUEUE_URL] = queue_urls["FanoutQueue"]
        yield variables
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def _start_process(descriptor: int, port: int, guarded: Mapping[str, str]) -> Process:
    """Start the process.

    Args:
        descriptor: The socket that it serves.
        port: The socket's port.
        guarded: The variables for the guard. Unlike arguments, only the same user can read them.
    """
    with without_interrupts():
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.aws.emulator_process",
            str(descriptor),
            str(port),
            stdin=PIPE,
            pass_fds=[descriptor],
            cwd=PROJECT,
            env={**os.environ, **guarded},
        )


async def _wait_until_healthy(process: Process, port: int) -> None:
    """Wait until the emulator answers. Raises RuntimeError if it ends, TimeoutError after 30 s."""
    async with asyncio.timeout(START_SECONDS):
        while process.returncode is None:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                status = await reader.readline()
                writer.close()
                if status.startswith(b"HTTP/"):  # the guard's refusal: the services have started
                    return
            await asyncio.sleep(0.02)
    raise RuntimeError("The AWS emulator ended while it started; see its output above")


def client(
    service: Literal["dynamodb", "secretsmanager", "sns", "sqs"], variables: Mapping[str, str]
) -> Any:
    """Return an SDK client of the emulator that `variables` lead to."""
    return boto3.client(
        service,
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables["AWS_REGION"],
        aws_access_key_id=variables[ACCESS_KEY],
        aws_secret_access_key=variables[SECRET_KEY],
        config=Config(retries={"total_max_attempts": 1}),
    )


def batch_seconds(app_variables: Mapping[str, str]) -> int:
    """Return the batching window of the queue; 0 if the variable is wrong, as the app will say."""
    text = app_variables.get(BATCH_SECONDS, "").strip()
    return int(text) if text.isdecimal() else 0


def create_queues(sqs: Any, batch_seconds: int = 0) -> dict[str, str]:
    """Create Herald's queues, for a worker with this batching window.

    Returns their URLs by logical id.
    """
    urls: dict[str, str] = {}
    for logical_id, resource in queues_and_tables(batch_seconds).items():
        if resource["Type"] == "AWS::SQS::Queue":
            attributes: dict[str, Any] = dict(resource["Properties"])
            name = attributes.pop("QueueName")
            if "RedrivePolicy" in attributes:
                attributes["RedrivePolicy"] = _redrive_policy(sqs, attributes, urls)
            texts = {
                attribute: value if isinstance(value, str) else json.dumps(value)
                for attribute, value in attributes.items()
            }
            urls[logical_id] = sqs.create_queue(QueueName=name, Attributes=texts)["QueueUrl"]
    return urls


def _redrive_policy(
    sqs: Any, attributes: Mapping[str, Any], urls: Mapping[str, str]
) -> dict[str, Any]:
    """Return a queue's policy with the ARN of its dead-letter queue, which was created before."""
    policy: dict[str, Any] = attributes["RedrivePolicy"]
    [dead_letters, _] = policy["deadLetterTargetArn"]["Fn::GetAtt"]
    response = sqs.get_queue_attributes(QueueUrl=urls[dead_letters], AttributeNames=["QueueArn"])
    return {**policy, "deadLetterTargetArn": response["Attributes"]["QueueArn"]}


def create_tables(dynamodb: Any, app_variables: Mapping[str, str]) -> None:
    """Create Herald's tables under the names that `app_variables` gives them."""
    for variable, logical_id in TABLES.items():
        table: dict[str, Any] = dict(RESOURCES[logical_id]["Properties"])
        table["TableName"] = app_variables.get(variable) or table["TableName"]
        name = {"TableName": table["TableName"]}
        encryption = table["SSESpecification"]
        # Unlike CloudFormation, the API says `Enabled`, and sets the other two by their own calls.
        table["SSESpecification"] = {
            "Enabled": encryption["SSEEnabled"],
            "SSEType": encryption["SSEType"],
        }
        expiry = table.pop("TimeToLiveSpecification")
        recovery = table.pop("PointInTimeRecoverySpecification")
        dynamodb.create_table(**table)
        dynamodb.update_time_to_live(**name, TimeToLiveSpecification=expiry)
        dynamodb.update_continuous_backups(**name, PointInTimeRecoverySpecification=recovery)
