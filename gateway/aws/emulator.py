"""The AWS services behind the local gateway: an emulator in a process of its own.

It listens on a free port of 127.0.0.1 and nowhere else, keeps its data in memory while code
reloads, and ends with the process that started it, however that one ends.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import boto3
from botocore.config import Config

from gateway.aws.variables import QUEUE_URL, leading_to
from gateway.configuration import PROJECT
from gateway.machine.registry import publish_after
from gateway.machine.signals import not_inherited
from infra.stage import RESOURCES, TABLES

ACCOUNT = "000000000000"
START_SECONDS = 30.0


@contextlib.asynccontextmanager
async def emulated_aws(environment: Mapping[str, str]) -> AsyncIterator[dict[str, str]]:
    """AWS for a while, with Herald's tables in it; yields the variables that lead an SDK to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with not_inherited():
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gateway.aws.emulator",
                str(listener.fileno()),
                str(port),
                stdin=PIPE,
                pass_fds=[listener.fileno()],
                cwd=PROJECT,
            )
    try:
        variables = leading_to(f"http://127.0.0.1:{port}", environment)
        await _answering(process, port)
        await asyncio.to_thread(create_tables, client("dynamodb", variables), environment)
        queue_urls = await asyncio.to_thread(create_queues, client("sqs", variables))
        if environment.get(QUEUE_URL) != "":  # emptied, all is delivered at once
            variables[QUEUE_URL] = queue_urls["FanoutQueue"]
        yield variables
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def _answering(process: Process, port: int) -> None:
    async with asyncio.timeout(START_SECONDS):
        while process.returncode is None:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /_ministack/health HTTP/1.0\r\n\r\n")
                status = await reader.readline()
                writer.close()
                if b" 200 " in status:
                    return
            await asyncio.sleep(0.02)
    raise RuntimeError("the AWS emulator ended at once")


def client(
    service: Literal["dynamodb", "secretsmanager", "sqs"], variables: Mapping[str, str]
) -> Any:
    """A client of a service of the emulator that `variables` lead to."""
    return boto3.client(
        service,
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables["AWS_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}),
    )


def create_queues(sqs: Any) -> dict[str, str]:
    """Create Herald's queues. Return their URLs by logical id."""
    urls: dict[str, str] = {}
    for logical_id, resource in RESOURCES.items():
        if resource["Type"] != "AWS::SQS::Queue":
            continue
        attributes: dict[str, Any] = dict(resource["Properties"])
        name = attributes.pop("QueueName")
        if "RedrivePolicy" in attributes:  # the queue that it names comes before this one
            policy = attributes["RedrivePolicy"]
            [dead_letters, _] = policy["deadLetterTargetArn"]["Fn::GetAtt"]
            arn = sqs.get_queue_attributes(QueueUrl=urls[dead_letters], AttributeNames=["QueueArn"])
            target = {"deadLetterTargetArn": arn["Attributes"]["QueueArn"]}
            attributes["RedrivePolicy"] = {**policy, **target}
        texts = {
            attribute: value if isinstance(value, str) else json.dumps(value)
            for attribute, value in attributes.items()
        }
        urls[logical_id] = sqs.create_queue(QueueName=name, Attributes=texts)["QueueUrl"]
    return urls


def create_tables(dynamodb: Any, environment: Mapping[str, str]) -> None:
    """Create Herald's tables, under the names that `environment` gives them."""
    for variable, logical_id in TABLES.items():
        table: dict[str, Any] = dict(RESOURCES[logical_id]["Properties"])
        table["TableName"] = environment.get(variable) or table["TableName"]
        name = {"TableName": table["TableName"]}
        encryption = table["SSESpecification"]
        # The API has another word than CloudFormation, and calls of their own for these two:
        table["SSESpecification"] = {
            "Enabled": encryption["SSEEnabled"],
            "SSEType": encryption["SSEType"],
        }
        expiry = table.pop("TimeToLiveSpecification")
        recovery = table.pop("PointInTimeRecoverySpecification")
        dynamodb.create_table(**table)
        dynamodb.update_time_to_live(**name, TimeToLiveSpecification=expiry)
        dynamodb.update_continuous_backups(**name, PointInTimeRecoverySpecification=recovery)


def _main(descriptor: int, port: int) -> None:
    """Serve on the inherited socket until standard input ends, as it does when our starter dies."""
    starter = os.getppid()
    os.environ.update(
        GATEWAY_PORT=str(port),
        BIND_HOST="127.0.0.1",
        MINISTACK_HOST="127.0.0.1",
        MINISTACK_ACCOUNT_ID=ACCOUNT,
        SERVICES="dynamodb,secretsmanager,sns,sqs",
        LOG_LEVEL="ERROR",
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
    )

    def end_with_starter() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        try:
            publish_after(starter)  # which couldn't, if it was killed
        finally:
            os._exit(0)  # nothing in the emulator is worth keeping

    threading.Thread(target=end_with_starter, daemon=True).start()

    import uvicorn
    from ministack.app import app

    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
