"""What the tests share: one emulator and one gateway, started when first asked for."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from gateway.emulator import emulated_aws
from gateway.server import Running
from tests.clients import Client, configured, served
from tests.copies import copy_project
from tests.tables import TABLES, empty
from tests.world import LIFE


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """A gateway with the default settings. Tests share it, so each uses users of its own."""
    with served(configured()) as gateway:
        yield gateway


@pytest.fixture
def herald(running: Running) -> Iterator[Client]:
    """A client of the shared gateway."""
    client = Client(running)
    yield client
    client.close()


@pytest.fixture
def herald_with() -> Iterator[Callable[..., Client]]:
    """Starts a gateway whose functions see the given environment; a client of it."""
    with ExitStack() as stack:

        def start(**environment: str) -> Client:
            client = Client(stack.enter_context(served(configured(**environment))))
            stack.callback(client.close)
            return client

        yield start


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that no command meets another one of the person who tests."""
    return copy_project(tmp_path_factory.mktemp("checkout") / "herald")


@pytest.fixture(scope="session")
def dynamodb() -> Iterator[Any]:
    """A DynamoDB client of an emulator with Herald's tables, for tests of the storage alone."""
    import boto3

    loop = asyncio.new_event_loop()
    emulator = emulated_aws({})
    variables = loop.run_until_complete(emulator.__aenter__())
    client = boto3.client(
        "dynamodb",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables["AWS_REGION"],
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )
    yield client
    client.close()
    loop.run_until_complete(emulator.__aexit__(None, None, None))
    loop.close()


@pytest.fixture
def life(life_tables: Any) -> Any:
    """The client; the tables LIFE are empty, and the test's alone."""
    empty(life_tables, LIFE)
    return life_tables


@pytest.fixture(scope="session")
def life_tables(dynamodb: Any) -> Any:
    for like, name in zip(astuple(TABLES), astuple(LIFE), strict=True):
        described = dynamodb.describe_table(TableName=like)["Table"]
        keys = {key["AttributeName"] for key in described["KeySchema"]}
        dynamodb.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=described["KeySchema"],
            AttributeDefinitions=[
                one for one in described["AttributeDefinitions"] if one["AttributeName"] in keys
            ],
        )
    return dynamodb


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user id that no other test has."""
    return f"user-of-{request.node.name}"
