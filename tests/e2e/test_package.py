"""The package for AWS: a valid template, and code that is complete, small, and without extras."""

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
from infra.configuration import StageConfiguration
from infra.stage import FUNCTIONS, Stage
from infra.template import edge_template, storage_template
from infra.wheels import ABI, Wheels

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


def test_the_code_is_complete_and_small_and_has_no_other_packages(packaged: Path) -> None:
    """Chalice leaves out packages without a wheel, and only prints a warning."""
    code = packaged / "deployment.zip"
    assert code.stat().st_size < 15_000_000
    names = zipfile.ZipFile(code).namelist()
    assert {"app.py", "chalicelib/auth/verifier.py", "jwt/api_jws.py", "joserfc/jwe.py"} <= set(
        names
    )
    for prefix in COMPILED:
        assert any(name.startswith(prefix) and name.endswith(".so") for name in names)
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert {one for one in folders if not one.endswith((".dist-info", ".data"))} == PACKAGES


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_the_wheels_that_chalice_finds_are_the_locked_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """Chalice asks pip for single wheels, by name and version, and so without their hashes."""
    requirements = PROJECT / "requirements.txt"
    downloaded = Wheels(tmp_path / "wheels")
    downloaded.download(requirements, architecture)
    for name, value in downloaded.variables.items():
        monkeypatch.setenv(name, value)
    builder = DependencyBuilder(OSUtils(), architecture=architecture)
    packed = tmp_path / "packed"
    packed.mkdir()
    wheels, missing = builder._download_dependencies(ABI, str(packed), str(requirements))
    assert not missing
    locked = (PROJECT / "requirements-dev.txt").read_text()
    for wheel in wheels:
        digest = hashlib.sha256((packed / wheel.filename).read_bytes()).hexdigest()
        assert f"--hash=sha256:{digest}" in locked, wheel.filename


def test_every_module_is_loaded_from_its_bytecode(packaged: Path, tmp_path: Path) -> None:
    """With `-v` Python prints where it loads each module from."""
    zipfile.ZipFile(packaged / "deployment.zip").extractall(tmp_path)
    loaded = subprocess.run(
        [sys.executable, "-v", "-c", "import app; import chalicelib.wiring"],
        cwd=tmp_path,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"# code object from {tmp_path}" not in loaded
    assert f"# code object from '{tmp_path}/chalicelib/__pycache__/wiring.cpython-" in loaded


def test_the_template_passes_cfn_lint(packaged: Path) -> None:
    subprocess.run([CFN_LINT, packaged / "sam.json"], check=True)


@pytest.mark.parametrize("template", [storage_template, edge_template])
def test_the_templates_beside_chalice_deploy_pass_cfn_lint(
    template: Callable[[StageConfiguration], dict[str, Any]], tmp_path: Path
) -> None:
    written = tmp_path / "template.json"
    written.write_text(json.dumps(template(StageConfiguration(Stage("dev")))))
    subprocess.run([CFN_LINT, written], check=True)


def test_the_template_has_everything_that_a_stage_needs(packaged: Path) -> None:
    template: Any = json.loads((packaged / "sam.json").read_text())
    resources = template["Resources"]
    route = resources["WebsocketConnectRoute"]["Properties"]
    assert route["AuthorizationType"] == "CUSTOM"
    assert route["AuthorizerId"] == {"Ref": "TokenAuthorizer"}
    assert_that_the_authorizer_names_no_identity_sources(resources["TokenAuthorizer"]["Properties"])
    assert resources["WebsocketAPIStage"]["Properties"]["AutoDeploy"] is True
    queue = resources["DeliverQueued"]["Properties"]["Events"]["DeliverQueuedSqsEventSource"]
    assert queue["Properties"]["Queue"]["Fn::Sub"].endswith(":herald-prod-fanout")
    roles = [name for name, one in resources.items() if one["Type"] == "AWS::IAM::Role"]
    assert len(roles) == len(FUNCTIONS)  # one for each function, and no others
    for logical_id in FUNCTIONS.values():
        function = resources[logical_id]["Properties"]
        assert function["LoggingConfig"] == {"LogGroup": {"Ref": f"{logical_id}Logs"}}
        variables = function["Environment"]["Variables"]
        assert variables["HERALD_FANOUT_QUEUE_URL"] == {"Ref": "FanoutQueue"}
        assert variables["HERALD_STAGE"] == "prod"  # from which it derives the tables' names
    assert resources["DeliverQueued"]["Properties"]["MemorySize"] == 1769
    chalice = json.loads((PROJECT / ".chalice" / "config.json").read_text())["lambda_functions"]
    assert resources["Sweep"]["Properties"]["Timeout"] == chalice["sweep"]["lambda_timeout"]
    scaling = queue["Properties"]["ScalingConfig"]["Fn::If"]
    assert scaling[1] == {"MaximumConcurrency": {"Ref": "WorkerConcurrency"}}
    names = [
        one["Properties"]["TableName"]
        for one in resources.values()
        if one["Type"] == "AWS::DynamoDB::Table"
    ]
    assert all(name.startswith("herald-prod-") for name in names)
    assert len(names) == 5
    domains = [name for name, one in resources.items() if one["Type"].endswith("::DomainName")]
    assert sorted(domains) == ["ApiGatewayCustomDomain", "WebsocketApiCustomDomain"]


def assert_that_the_authorizer_names_no_identity_sources(authorizer: Any) -> None:
    """Assert that API Gateway asks the authorizer for each handshake.

    A token may come in the header, the query or the subprotocol. API Gateway answers 401 without
    asking the authorizer if a handshake lacks one of the named identity sources. The property is
    optional for WebSocket APIs, which cache no verdict.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-apigatewayv2-authorizer.html
    https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-lambda-auth.html"""
    assert authorizer["AuthorizerType"] == "REQUEST"
    assert "IdentitySource" not in authorizer
    assert "AuthorizerResultTtlInSeconds" not in authorizer
