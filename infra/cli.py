"""The commands of `python -m infra`: package, sbom, resources, deploy, token, destroy."""

import argparse
import math
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.stage import KEY_SOURCES
from gateway.tokens import DEFAULT_SCOPE
from infra import build
from infra.chalice_deployment import ChaliceDeployment, has_signing_key
from infra.cloudformation import DeploymentError
from infra.configuration import StageConfiguration
from infra.parameters import CHALICE_PARAMETERS, PARAMETERS
from infra.python_runtime import use_newer_python
from infra.stack_deployment import StackDeployment
from infra.stage import DEFAULT_REGION, PROJECT, TABLES, Stage
from infra.tokens import stage_token

METHODS = ("cloudformation", "chalice")
COMMANDS = {
    "package": "write the template and the code of a stage",
    "sbom": "write the bill of materials of a stage's code",
    "resources": "create what `chalice deploy` needs, and attach what it leaves out",
    "deploy": "deploy a stage to AWS",
    "token": "print a token for a user of a deployed stage",
    "destroy": "delete a deployed stage",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status: 1 if it failed, 2 if it was called wrongly."""
    parsed = _parser().parse_args(arguments)
    try:
        stage = Stage(parsed.stage)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        _run(parsed, stage)
    except (BotoCoreError, ClientError, DeploymentError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("stage")
        if name == "token":
            command.add_argument("user")
            command.add_argument("scope", nargs="?", default=DEFAULT_SCOPE)
        if name == "deploy":
            command.add_argument("--with", dest="method", choices=METHODS, default=METHODS[0])
    return parser


def _run(arguments: argparse.Namespace, stage: Stage) -> None:
    """Run one command. Raises DeploymentError, and the SDK's errors."""
    given = os.environ.get("PARAMETERS", "")
    configuration = StageConfiguration.read(stage)
    match arguments.command:
        case "package":
            configuration.check()
            _package(configuration)
        case "sbom":
            use_newer_python("-m", "infra")
            build.bill_of_materials(configuration)
        case "resources":
            parameters = template_parameters(given, "chalice")
            configuration.check()
            _make_resources(configuration, parameters)
        case "deploy":
            parameters = template_parameters(given, arguments.method)
            check_settings(configuration, arguments.method)
            use_newer_python("-m", "infra")
            _deploy(configuration, arguments.method, parameters)
        case "token":
            variables, session = configuration.variables, _session()
            print(stage_token(stage, variables, session, arguments.user, arguments.scope))
        case "destroy":
            _destroy(configuration, confirmed=os.environ.get("CONFIRM", ""))


# --- The commands


def _package(configuration: StageConfiguration) -> None:
    """Write the template and the code, and print how to deploy them."""
    use_newer_python("-m", "infra")
    stage = configuration.stage
    out = build.package(configuration)
    _print_package(out)
    folder = out.relative_to(PROJECT)
    print(f"""
`make deploy STAGE={stage.name}` deploys it, and so does the AWS CLI:

  aws cloudformation package --template-file {folder}/sam.json \\
    --s3-bucket YOUR-BUCKET --output-template-file {folder}/packaged.yaml
  aws cloudformation deploy --template-file {folder}/packaged.yaml --s3-bucket YOUR-BUCKET \\
    --stack-name {stage.stack_name} --capabilities CAPABILITY_IAM""")
    if not _has_key_source(configuration):
        print(f"\nBefore you deploy it: {_no_key_source(stage)}", file=sys.stderr)


def _print_package(out: Path) -> None:
    """Print where the template and the code are, with the packages that the code has."""
    code = out / "deployment.zip"
    packages = sorted({name.partition("/")[0] for name in zipfile.ZipFile(code).namelist()})
    folder = out.relative_to(PROJECT)
    print(f"{folder}/sam.json        the template")
    print(f"{folder}/deployment.zip  {code.stat().st_size / 1e6:.1f} MB: {', '.join(packages)}")


def _make_resources(configuration: StageConfiguration, parameters: Mapping[str, str]) -> None:
    """Create what `chalice deploy` needs; if the stage is deployed, attach what that left out."""
    stage, session = configuration.stage, _session()
    if StackDeployment(stage, session).exists():
        raise DeploymentError(_other_method(stage))
    attached = ChaliceDeployment(configuration, session).make_resources(parameters)
    print(f"The stage {stage.name} has its tables, its queue, its log groups, and the signing key")
    print(f"{stage.signing_key} in Secrets Manager.")
    if attached:
        print("The authorizer of $connect, the ping route, throttling, alarms and the dashboard")
        print("are attached.")
    else:
        print(f"\nNext, and after each change of code:\n\n  chalice deploy --stage {stage.name}")
    print(f"\nA token for alice:\n\n  python -m infra token {stage.name} alice")


def _deploy(configuration: StageConfiguration, method: str, parameters: Mapping[str, str]) -> None:
    """Deploy a stage to the account and the region that the SDK is configured for."""
    stage, session = configuration.stage, _session()
    stack, by_chalice = StackDeployment(stage, session), ChaliceDeployment(configuration, session)
    if (stack if method == "chalice" else by_chalice).exists():
        raise DeploymentError(_other_method(stage))
    if method == "chalice":
        outputs = by_chalice.deploy(parameters)
    else:
        package = build.package(configuration)
        _print_package(package)
        outputs = stack.deploy(package, parameters)
    print(f"""
Herald is deployed.

  REST       {outputs["EndpointURL"].rstrip("/")}
  WebSocket  {outputs["WebsocketConnectEndpointURL"].rstrip("/")}""")


def _destroy(configuration: StageConfiguration, *, confirmed: str) -> None:
    """Delete everything of a stage. Raises SystemExit unless its name was given as confirmation."""
    stage = configuration.stage
    tables = ", ".join(stage.named(table) for table in TABLES.values())
    if confirmed != stage.name:
        raise SystemExit(
            f"This deletes the stage {stage.name} and everything in {tables}.\n"
            f"If that is what you want: make destroy STAGE={stage.name} CONFIRM={stage.name}"
        )
    session = _session()
    by_chalice = ChaliceDeployment(configuration, session)
    if by_chalice.exists():
        by_chalice.destroy()
    else:
        StackDeployment(stage, session).destroy()
    print(f"The stage {stage.name} and its tables are gone.")


# --- What the commands check


def check_settings(configuration: StageConfiguration, method: str) -> None:
    """Check that the stage's functions will accept their settings, and can accept a token.

    Raises DeploymentError.
    """
    configuration.check()
    by_signing_key = method == "chalice" and has_signing_key(configuration.stage, _session())
    if not _has_key_source(configuration) and not by_signing_key:
        raise DeploymentError(f"Nothing was deployed: {_no_key_source(configuration.stage)}")


def template_parameters(text: str, method: str) -> dict[str, str]:
    """Parse parameters such as `AccessLogs=true AlarmTopic=arn:…`.

    Raises DeploymentError for a parameter that the method doesn't have, and for a wrong value.
    """
    given = dict(pair.partition("=")[::2] for pair in text.split())
    known = CHALICE_PARAMETERS if method == "chalice" else PARAMETERS
    for name in given.keys() - known.keys():
        raise DeploymentError(f"Unknown parameter {name}; allowed: {', '.join(sorted(known))}.")
    for name, value in given.items():
        if known[name]["Type"] == "Number":
            _check_number(name, value, known[name])
        _check_choice(name, value, known[name].get("AllowedValues", [value]))
    return given


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise DeploymentError unless `value` is one of the choices."""
    if value not in choices:
        raise DeploymentError(f"{name} holds {value!r}; allowed: {' or '.join(choices)}")


def _check_number(name: str, value: str, parameter: Mapping[str, Any]) -> None:
    """Raise DeploymentError unless `value` is a number that the parameter's definition allows."""
    lowest, highest = parameter.get("MinValue", 0), parameter.get("MaxValue")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not lowest <= number < math.inf or (highest is not None and number > highest):
        allowed = f"a number from {lowest}" + ("" if highest is None else f" to {highest}")
        raise DeploymentError(f"{name} holds {value!r}; allowed: {allowed}")


def _other_method(stage: Stage) -> str:
    return f"The stage {stage.name} was deployed by the other method; destroy it first."


def _has_key_source(configuration: StageConfiguration) -> bool:
    """Return whether the stage's configuration names a source of keys that verify tokens."""
    return any(configuration.variables.get(source) for source in KEY_SOURCES)


def _no_key_source(stage: Stage) -> str:
    return (
        f"the stage {stage.name} has no key source, so it could never accept a token.\n"
        "Set one of these in its environment_variables in .chalice/config.json:\n\n"
        "  HERALD_JWKS_URL        the public keys of your identity provider\n"
        f"  HERALD_JWT_SECRET_ARN  an HS256 secret in Secrets Manager, herald-{stage.name}-…\n"
        "  HERALD_JWT_SECRET      an HS256 secret of at least 32 bytes, in plain text\n\n"
        f"Or run `make resources STAGE={stage.name}`, which creates a random signing key, and\n"
        f"deploy with `chalice deploy --stage {stage.name}`."
    )


def _session() -> boto3.Session:
    """Return the SDK's session; where no region is configured, it uses the default one."""
    session = boto3.Session()
    return session if session.region_name else boto3.Session(region_name=DEFAULT_REGION)
