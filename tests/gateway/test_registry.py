"""Several gateways of one checkout: they find each other, and share an AWS config file."""

import configparser
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.registry import Registry
from tests.support.clients import eventually
from tests.support.copies import copy_project
from tests.support.process import Command

Start = Callable[..., Command]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which no command has run."""
    return copy_project(tmp_path / "herald")


@pytest.fixture
def run(checkout: Path) -> Iterator[Start]:
    """Start `make run` and wait for its welcome; kill it after the test."""
    started: list[Command] = []

    def start(**environment: str) -> Command:
        started.append(Command(checkout, "run", **environment))
        started[-1].until("curl")
        return started[-1]

    yield start
    for command in started:
        command.process.kill()
        command.process.communicate()


def config(checkout: Path) -> Path:
    return checkout / ".herald" / "aws.config"


def endpoint(checkout: Path) -> str:
    """Return the endpoint in the config file."""
    read = configparser.ConfigParser()
    read.read(config(checkout))
    return read["default"]["endpoint_url"]


def ask_for_tables(checkout: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that lists the tables, with nothing but the config file and `environment`."""
    program = "import boto3; print(boto3.client('dynamodb').list_tables()['TableNames'])"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"AWS_CONFIG_FILE": str(config(checkout)), "HOME": "/nowhere", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def list_tables(checkout: Path) -> str:
    """Return the tables that the program lists."""
    asked = ask_for_tables(checkout)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout


def test_the_config_file_is_all_that_an_sdk_needs(checkout: Path, run: Start) -> None:
    first = run(HERALD_USERS_TABLE="of-the-first")
    assert "'of-the-first'" in list_tables(checkout)
    run(HERALD_USERS_TABLE="of-the-second")
    assert "'of-the-second'" in list_tables(checkout)
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 0
    assert "'of-the-second'" in list_tables(checkout)


def test_an_sdk_that_prefers_other_credentials_is_told_what_to_set(
    checkout: Path, run: Start, tmp_path: Path
) -> None:
    """An SDK prefers `~/.aws/credentials` to any config file."""
    run()
    (tmp_path / ".aws").mkdir()
    own = "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = own\n"
    (tmp_path / ".aws" / "credentials").write_text(own)
    refused = ask_for_tables(checkout, HOME=str(tmp_path))
    assert "UnrecognizedClientException" in refused.stderr
    assert "set AWS_SHARED_CREDENTIALS_FILE=.herald/aws.config, too" in refused.stderr
    cured = ask_for_tables(
        checkout, HOME=str(tmp_path), AWS_SHARED_CREDENTIALS_FILE=str(config(checkout))
    )
    assert "'herald-users'" in cured.stdout


def test_only_the_owner_can_read_the_files(checkout: Path, run: Start) -> None:
    run()
    herald = checkout / ".herald"
    files = [path for path in herald.rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"aws.config", "jwt-secret"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (herald / "running").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_config_file_leads_to_the_newest_running_gateway(
    checkout: Path, run: Start, number: int
) -> None:
    first = run()
    leads_to_the_first = endpoint(checkout)
    second = run()
    assert endpoint(checkout) != leads_to_the_first
    second.process.send_signal(number)
    second.end()
    eventually(lambda: endpoint(checkout) == leads_to_the_first)
    first.process.send_signal(number)
    first.end()
    eventually(lambda: not config(checkout).exists())
    assert list((checkout / ".herald" / "running").glob("*.json")) == []


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry."""
    return Registry(tmp_path)


VARIABLES = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
}


def test_the_newest_gateway_is_found_also_by_its_port(registry: Registry) -> None:
    with registry.registered(1, VARIABLES), registry.registered(2, VARIABLES):
        assert [entry.port for entry in registry.gateways()] == [1, 2]
        for port, found in ((None, 2), (1, 1), (2, 2)):
            entry = registry.newest(port)
            assert entry is not None
            assert (entry.port, entry.pid) == (found, os.getpid())
        assert registry.newest(3) is None
    assert registry.gateways() == []
    assert registry.newest() is None


def test_the_file_of_a_killed_gateway_is_ignored_and_removed(registry: Registry) -> None:
    registry.folder.mkdir()
    left = registry.folder / "gateway-1-1.json"
    left.write_text('{"pid": 1, "port": 1, "started_ns": 1, "variables": {}}')
    assert registry.gateways() == []
    with registry.registered(2, VARIABLES):
        assert [entry.port for entry in registry.gateways()] == [2]
        assert not left.exists()


def test_an_emulator_waits_until_its_starter_has_released_its_lock(registry: Registry) -> None:
    """A killed process may close the pipe that the emulator reads before it releases its lock."""
    with ExitStack() as starter:
        starter.enter_context(registry.registered(1, VARIABLES))
        emulator = threading.Thread(target=registry.publish_after, args=[os.getpid()])
        emulator.start()
        assert emulator.is_alive()
        starter.close()
        emulator.join()
    assert registry.gateways() == []
    assert not registry.aws_config.exists()


def test_nothing_is_written_if_no_gateway_ever_ran(registry: Registry) -> None:
    registry.publish_after(1)
    assert not registry.folder.exists()
