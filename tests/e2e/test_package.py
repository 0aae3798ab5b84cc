"""What is packaged for AWS: a sound template, and code that is complete, small and nothing else."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chalice.deploy.packager import DependencyBuilder
from chalice.utils import OSUtils

from gateway.configuration import PROJECT
from infra.stage import FUNCTIONS, Stage
from infra.template import edge, storage

CFN_LINT = PROJECT / ".venv" / "e2e" / "bin" / "cfn-lint"
COMPILED = ("_cffi_backend.", "cryptography/hazmat/bindings/_rust.", "httptools/parser/parser.")
PACKAGES = {
    "__pycache__",
    "aws_lambda_powertools",
    "cffi",
    "chalice",
    "chalicelib",
    "cryptography",
    "httptools",
    "jmespath",
    "joserfc",
    "jwt",
    "pycparser",
}


def test_the_code_is_complete_and_small_and_nothing_else(packaged: Path) -> None:
    """Chalice leaves out what it finds no wheel for, with no more than a warning."""
    code = packaged / "deployment.zip"
    assert code.stat().st_size < 15_000_000
    names = zipfile.ZipFile(code).namelist()
    assert {"app.py", "chalicelib/auth.py", "jwt/api_jws.py", "joserfc/jwe.py"} <= set(names)
    for prefix in COMPILED:
        assert any(name.startswith(prefix) and name.endswith(".so") for name in names)
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert {one for one in folders if not one.endswith((".dist-info", ".data"))} == PACKAGES


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_the_wheels_that_chalice_packs_are_the_locked_ones(
    tmp_path: Path, architecture: str
) -> None:
    """Chalice asks pip for single wheels, by name and version, and so without their hashes."""
    builder = DependencyBuilder(OSUtils(), architecture=architecture)
    abi = f"cp{sys.version_info.major}{sys.version_info.minor}"
    requirements = str(PROJECT / "requirements.txt")
    wheels, missing = builder._download_dependencies(abi, str(tmp_path), requirements)
    assert not missing
    locked = (PROJECT / "requirements-dev.txt").read_text()
    for wheel in wheels:
        digest = hashlib.sha256((tmp_path / wheel.filename).read_bytes()).hexdigest()
        assert f"--hash=sha256:{digest}" in locked, wheel.filename


def test_no_module_is_compiled_at_a_cold_start(packaged: Path, tmp_path: Path) -> None:
    """Python says of each module that it loads where from."""
    zipfile.ZipFile(packaged / "deployment.zip").extractall(tmp_path)
    loaded = subprocess.run(
        [sys.executable, "-v", "-c", "import app; import chalicelib.service"],
        cwd=tmp_path,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"# code object from {tmp_path}" not in loaded
    assert f"# code object from '{tmp_path}/chalicelib/__pycache__/service.cpython-" in loaded


def test_the_template_is_sound(packaged: Path) -> None:
    subprocess.run([CFN_LINT, packaged / "sam.json"], check=True)


@pytest.mark.parametrize("template", [storage, edge])
def test_what_chalice_deploy_lacks_is_sound(
    template: Callable[[Stage], dict[str, Any]], tmp_path: Path
) -> None:
    written = tmp_path / "template.json"
    written.write_text(json.dumps(template(Stage("dev"))))
    subprocess.run([CFN_LINT, written], check=True)


def test_the_template_has_all_that_a_stage_needs(packaged: Path) -> None:
    template: Any = json.loads((packaged / "sam.json").read_text())
    resources = template["Resources"]
    route = resources["WebsocketConnectRoute"]["Properties"]
    assert route["AuthorizationType"] == "CUSTOM"
    assert route["AuthorizerId"] == {"Ref": "TokenAuthorizer"}
    assert_a_token_may_come_in_three_ways(resources["TokenAuthorizer"]["Properties"])
    assert resources["WebsocketAPIStage"]["Properties"]["AutoDeploy"] is True
    queue = resources["DeliverQueued"]["Properties"]["Events"]["DeliverQueuedSqsEventSource"]
    assert queue["Properties"]["Queue"]["Fn::Sub"].endswith(":herald-prod-fanout")
    roles = [name for name, one in resources.items() if one["Type"] == "AWS::IAM::Role"]
    assert len(roles) == len(FUNCTIONS)  # one for each, and no other
    for logical_id in FUNCTIONS.values():
        function = resources[logical_id]["Properties"]
        assert function["LoggingConfig"] == {"LogGroup": {"Ref": f"{logical_id}Logs"}}
        variables = function["Environment"]["Variables"]
        assert variables["HERALD_FANOUT_QUEUE_URL"] == {"Ref": "FanoutQueue"}
        assert variables["HERALD_STAGE"] == "prod"  # from which it knows the tables' names
    assert resources["DeliverQueued"]["Properties"]["MemorySize"] == 1769
    assert resources["Sweep"]["Properties"]["Timeout"] == 120
    names = [
        one["Properties"]["TableName"]
        for one in resources.values()
        if one["Type"] == "AWS::DynamoDB::Table"
    ]
    assert all(name.startswith("herald-prod-") for name in names)
    assert len(names) == 5
    domains = [name for name, one in resources.items() if one["Type"].endswith("::DomainName")]
    assert sorted(domains) == ["ApiGatewayCustomDomain", "WebsocketApiCustomDomain"]


def assert_a_token_may_come_in_three_ways(authorizer: Any) -> None:
    """API Gateway refuses a handshake with 401, unasked, if it lacks one of the identity sources
    that an authorizer names; without any it asks the authorizer each time. The property is optional
    for WebSocket APIs, and no verdict is cached for them.
    https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-apigatewayv2-authorizer.html
    https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-lambda-auth.html"""
    assert authorizer["AuthorizerType"] == "REQUEST"
    assert "IdentitySource" not in authorizer
    assert "AuthorizerResultTtlInSeconds" not in authorizer
