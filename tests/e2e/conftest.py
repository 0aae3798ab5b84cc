"""Fixtures of the tests of a deployment: each stage is packaged and deployed once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.configuration import PROJECT
from tests.e2e.deployment import Deployed, emulated, own_architecture, without_aws
from tests.support.clients import Client

SECONDS = 300
"""The time limit of each test, since any may be the first one, which waits for the deployment."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture(scope="session")
def packaged(checkout: Path) -> Path:
    """The folder that `make package STAGE=prod` writes; both APIs have custom domain names."""
    for file in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(PROJECT / file, checkout)
    path = checkout / ".chalice" / "config.json"
    plain = path.read_text()
    config = json.loads(plain)
    config["stages"]["prod"] |= {"lambda_architecture": own_architecture()} | {
        f"{api}_custom_domain": {
            "domain_name": f"{api[:4].strip('_')}.example.com",
            "certificate_arn": "arn:aws:acm:us-east-1:000000000000:certificate/a",
        }
        for api in ("api_gateway", "websocket_api")
    }
    path.write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "infra", "package", "prod"],
        cwd=checkout,
        env=without_aws(),
        check=True,
        capture_output=True,
        text=True,
    )
    path.write_text(plain)
    assert "deployment.zip" in done.stdout
    package = checkout / ".herald" / "build" / "prod" / "package"
    return package.rename(checkout / "package")  # since the deployment builds it again


@pytest.fixture(
    scope="session", params=[("prod", "cloudformation"), ("dev", "chalice")], ids="/".join
)
def deployed(packaged: Path, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    """A deployed stage. Destroying it in the end leaves nothing behind."""
    stage, method = request.param
    with emulated() as endpoint:
        aws = Deployed(endpoint, packaged.parent, stage, method)
        # The emulator returns the templates of a MOCK integration as they are written.
        aws.deploy(ThrottlingRate="4000", PingRoute="false")
        yield aws
        with pytest.raises(RuntimeError, match=f"make destroy STAGE={stage} CONFIRM={stage}"):
            aws.command("destroy")
        aws.destroy()
        assert aws.client("dynamodb").list_tables()["TableNames"] == []
        assert aws.client("sqs").list_queues().get("QueueUrls", []) == []
        assert aws.client("lambda").list_functions()["Functions"] == []
        assert aws.client("secretsmanager").list_secrets()["SecretList"] == []
        assert aws.client("s3").list_buckets()["Buckets"] == []
        assert aws.client("apigatewayv2").get_apis()["Items"] == []
        assert aws.client("apigateway").get_rest_apis()["items"] == []
        assert aws.client("iam").list_roles()["Roles"] == []


@pytest.fixture
def cloud(deployed: Deployed) -> Iterator[Client]:
    """A client of the deployed stage."""
    with closing(Client(deployed.running)) as client:
        client.http.timeout = 30.0
        yield client
