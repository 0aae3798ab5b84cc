"""Shared fixtures: one emulator and one gateway, started at first use."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from gateway.aws.emulator import client as client_of
from gateway.aws.emulator import emulated_aws
from gateway.aws.variables import REGION
from gateway.server import Running
from tests.support.clients import Client, configured, served
from tests.support.copies import copy_project
from tests.support.echo import echoing
from tests.support.tables import TABLES, create, empty
from tests.support.world import LIFE

# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Let child processes be interrupted, even if a shell started the tests in the background.

    Such a shell ignores SIGINT, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until the tests are collected: nearly all of these objects stay


def pytest_collection_finish() -> None:
    """Collect garbage again, but never among the modules and tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the longest tests, each in its own process, so that none runs last and alone."""
    workers = getattr(config, "workerinput", {"workercount": 1})["workercount"]
    longest = [item for item in items if item.get_closest_marker("timeout")]
    others = [item for item in items if item not in longest]
    share = len(items) / workers  # each process starts with a part of the list
    for number, item in enumerate(longest):
        others.insert(round(number % workers * share), item)
    items[:] = others


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """A gateway with the default settings. Tests share it, so each one uses its own users."""
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
    """Start a gateway whose functions see the given environment; return a client of it."""
    with ExitStack() as stack:

        def start(**environment: str) -> Client:
            client = Client(stack.enter_context(served(configured(**environment))))
            stack.callback(client.close)
            return client

        yield start


@pytest.fixture(scope="session")
def echo_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A gateway of the echo app with the default settings, and the file of its events."""
    events = tmp_path_factory.mktemp("echo") / "events"
    with echoing(events) as echo:
        yield echo.running, events


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, apart from the developer's own running commands."""
    return copy_project(tmp_path_factory.mktemp("checkout") / "herald")


@pytest.fixture(scope="session")
def emulator() -> Iterator[Mapping[str, str]]:
    """An emulator with Herald's tables and queues. Yields the variables that point an SDK to it."""
    loop = asyncio.new_event_loop()
    context = emulated_aws({})
    yield loop.run_until_complete(context.__aenter__())
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


@pytest.fixture(scope="session")
def ministack(emulator: Mapping[str, str]) -> Iterator[Any]:
    """A DynamoDB client of an emulator, for tests with concurrent calls.

    Tests share the tables, so each one uses its own users.
    """
    client = client_of("dynamodb", emulator)
    yield client
    client.close()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty AWS in this process, emulated by moto, for tests without concurrent calls.

    Every SDK client uses it. It has no access to the developer's own AWS account.
    """
    from moto import mock_aws

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    with mock_aws():
        yield


@pytest.fixture(scope="session")
def moto_client() -> Iterator[Any]:
    """A DynamoDB client that uses moto while `aws` is active. Shared, since one takes 0.1 s."""
    import moto.core  # noqa: F401  before the client, which it patches
    from botocore.session import Session

    session = Session()
    session.set_credentials("testing", "testing")
    client = session.create_client("dynamodb", REGION)
    yield client
    client.close()


@pytest.fixture
def moto(aws: None, moto_client: Any) -> Any:
    """A DynamoDB client of moto with Herald's tables."""
    create(moto_client, TABLES)
    return moto_client


@pytest.fixture(params=["moto", "ministack"])
def dynamodb(request: pytest.FixtureRequest) -> Any:
    """A DynamoDB client of each emulator in turn, so that their differences are found."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def life(request: pytest.FixtureRequest) -> Any:
    """A DynamoDB client. The tables LIFE are empty, and no other test uses them.

    It uses moto, unless the test is marked with `ministack`.
    """
    marked = request.node.get_closest_marker("ministack")
    return request.getfixturevalue("ministack_life" if marked else "moto_life")


@pytest.fixture
def moto_life(aws: None, moto_client: Any) -> Any:
    """A client for one call at a time, since moto does not isolate transactions."""
    create(moto_client, LIFE)
    return moto_client


@pytest.fixture(scope="session")
def ministack_tables(ministack: Any) -> Any:
    create(ministack, LIFE)
    return ministack


@pytest.fixture
def ministack_life(ministack_tables: Any) -> Any:
    empty(ministack_tables, LIFE)
    return ministack_tables


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user id that no other test has."""
    return f"user-of-{request.node.name}"
