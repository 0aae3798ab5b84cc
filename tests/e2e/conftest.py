"""What the tests of a deployment share: it is packaged once, and deployed once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.configuration import PROJECT
from tests.clients import Client
from tests.e2e.deployment import Deployed, emulated


@pytest.fixture(scope="session")
def packaged(checkout: Path) -> Path:
    """What `make package STAGE=prod` writes."""
    shutil.copy(PROJECT / "requirements.txt", checkout)
    environment = {name: value for name, value in os.environ.items() if name[:4] != "AWS_"}
    done = subprocess.run(
        [sys.executable, "-m", "infra", "package", "prod"],
        cwd=checkout,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "deployment.zip" in done.stdout
    return checkout / ".herald" / "build" / "prod" / "package"


@pytest.fixture(scope="session")
def deployed(packaged: Path) -> Iterator[Deployed]:
    """The stage, deployed; and in the end destroyed, so that nothing of it is left."""
    with emulated() as aws:
        aws.deploy(packaged, "prod")
        yield aws
        aws.destroy("prod")
        assert aws.client("dynamodb").list_tables()["TableNames"] == []
        assert aws.client("sqs").list_queues().get("QueueUrls", []) == []
        assert aws.client("lambda").list_functions()["Functions"] == []
        assert aws.client("s3").list_buckets()["Buckets"] == []


@pytest.fixture
def cloud(deployed: Deployed) -> Iterator[Client]:
    """A client of the deployed stage."""
    with closing(Client(deployed.running)) as client:
        client.http.timeout = 30.0
        yield client
