"""`python -m infra package | resources | deploy | token | destroy STAGE`: deploying, by command."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.settings import Settings, SettingsError
from chalicelib.stage import KEY_SOURCES
from gateway.configuration import chalice_configuration, stage_environment
from gateway.tokens import DEFAULT_SCOPE
from infra.chalice_deployment import ChaliceDeployment, has_signing_key
from infra.cloudformation import DeploymentError
from infra.code import compile_modules
from infra.deploy import Deployment
from infra.python_runtime import chalice, use_newer_python
from infra.stage import PROJECT, TABLES, Stage
from infra.template import PARAMETERS, merge_template
from infra.tokens import stage_token

BUILDS = PROJECT / ".herald" / "build"
MAX_ZIP_BYTES = 15_000_000
METHODS = ("cloudformation", "chalice")
REGION = "us-east-1"  # for what Chalice asks of its region; the template is every region's


def build(stage: Stage) -> Path:
    """A folder of what is deployed, and nothing else, so that no file of a working copy travels."""
    folder = BUILDS / stage.name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / ".chalice").mkdir(parents=True)
    for file in ("app.py", "requirements.txt", ".chalice/config.json"):
        shutil.copy(PROJECT / file, folder / file)
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "chalicelib", folder / "chalicelib", ignore=no_cache)
    (folder / "merge.json").write_text(json.dumps(merge_template(stage), indent=2) + "\n")
    return folder


def package(stage: Stage) -> Path:
    """Write the template and the functions' code, ready for CloudFormation; where they are."""
    folder = build(stage)
    out = folder / "package"
    ended = subprocess.run(
        [chalice(), "package", "--stage", stage.name, "--merge-template", "merge.json", out],
        cwd=folder,
        env={"AWS_DEFAULT_REGION": REGION, **os.environ, "PYTHONPATH": str(PROJECT)},
        check=False,
        stdout=subprocess.DEVNULL,
    )
    if ended.returncode:
        raise DeploymentError("chalice package failed, for the reason above")
    code = out / "deployment.zip"
    compile_modules(code)
    size = code.stat().st_size
    if size > MAX_ZIP_BYTES:
        raise SystemExit(f"{code} has {size:,} bytes; {MAX_ZIP_BYTES:,} are allowed")
    packages = sorted({name.partition("/")[0] for name in zipfile.ZipFile(code).namelist()})
    where = out.relative_to(PROJECT)
    print(f"{where}/sam.json        the template")
    print(f"{where}/deployment.zip  {size / 1e6:.1f} MB: {', '.join(packages)}")
    return out


def how_to_deploy(out: Path, stage: Stage) -> None:
    where = out.relative_to(PROJECT)
    print(f"""
`make deploy STAGE={stage.name}` deploys it, and so does the AWS CLI:

  aws cloudformation package --template-file {where}/sam.json \\
    --s3-bucket YOUR-BUCKET --output-template-file {where}/packaged.yaml
  aws cloudformation deploy --template-file {where}/packaged.yaml --s3-bucket YOUR-BUCKET \\
    --stack-name herald-{stage.name} --capabilities CAPABILITY_IAM""")


def resources(stage: Stage, parameters: dict[str, str]) -> None:
    """Make what `chalice deploy` needs and can't make; attach what it lacks, once it has run."""
    if Deployment(stage, session()).exists:
        raise DeploymentError(_other_method(stage))
    attached = ChaliceDeployment(stage, session()).make_resources(parameters)
    print(f"The resources of the stage {stage.name} are there: tables, queue, log groups, and the")
    print(f"signing key {stage.signing_key} in Secrets Manager.")
    if attached:
        print("The authorizer of $connect, throttling, alarms and the dashboard are attached.")
    else:
        print(f"\nNext, and after each change of code:\n\n  chalice deploy --stage {stage.name}")
    print(f"\nA token for alice:\n\n  python -m infra token {stage.name} alice")


def deploy(stage: Stage, method: str, parameters: dict[str, str]) -> None:
    """Take a stage to the account and the region that the SDK is configured for."""
    stack, by_chalice = Deployment(stage, session()), ChaliceDeployment(stage, session())
    if (stack if method == "chalice" else by_chalice).exists:
        raise DeploymentError(_other_method(stage))
    if method == "chalice":
        outputs = by_chalice.deploy(parameters)
    else:
        outputs = stack.deploy(package(stage), parameters)
    print(f"""
Herald is deployed.

  REST       {outputs["EndpointURL"].rstrip("/")}
  WebSocket  {outputs["WebsocketConnectEndpointURL"].rstrip("/")}""")


def _other_method(stage: Stage) -> str:
    return f"The stage {stage.name} was deployed the other way: destroy it first"


def environment_of(stage: Stage) -> dict[str, str]:
    """The environment variables that `.chalice/config.json` gives a stage's functions."""
    return stage_environment(chalice_configuration(), stage.name)


def check_settings(stage: Stage, method: str) -> None:
    """See that the stage's functions would take their settings, and could accept a token.
    Raises DeploymentError."""
    on_lambda = {"AWS_LAMBDA_FUNCTION_NAME": stage.function("api_handler")}
    try:
        Settings.from_environ({**environment_of(stage), **on_lambda})
    except SettingsError as error:
        raise DeploymentError(f".chalice/config.json: {error}") from None
    if has_key_source(stage) or (method == "chalice" and has_signing_key(stage, session())):
        return
    raise DeploymentError(f"Nothing was deployed: {no_key_source(stage)}")


def has_key_source(stage: Stage) -> bool:
    """Whether the stage's configuration names keys that verify tokens."""
    environment = environment_of(stage)
    return any(environment.get(source) for source in KEY_SOURCES)


def no_key_source(stage: Stage) -> str:
    """The message for a stage that has none."""
    return (
        f"the stage {stage.name} has no key source, so it could never accept a token.\n"
        "Set one of these in its environment_variables in .chalice/config.json:\n\n"
        "  HERALD_JWKS_URL        the public keys of your identity provider\n"
        f"  HERALD_JWT_SECRET_ARN  an HS256 secret in Secrets Manager, herald-{stage.name}-…\n"
        "  HERALD_JWT_SECRET      an HS256 secret of at least 32 bytes, in plain text\n\n"
        f"Or let `make resources STAGE={stage.name}` make a random signing key, and deploy by"
        f" `chalice deploy --stage {stage.name}`."
    )


def destroy(stage: Stage, confirmed: str) -> None:
    """Delete all of a stage, if that is what was meant."""
    tables = ", ".join(stage.named(table) for table in TABLES.values())
    if confirmed != stage.name:
        raise SystemExit(
            f"This deletes the stage {stage.name} and all that is in {tables}.\n"
            f"If that is what you want: make destroy STAGE={stage.name} CONFIRM={stage.name}"
        )
    by_chalice = ChaliceDeployment(stage, session())
    if by_chalice.exists:
        by_chalice.destroy()
    else:
        Deployment(stage, session()).destroy()
    print(f"The stage {stage.name} and its tables are gone.")


def session() -> boto3.Session:
    """The SDK's session, in whatever region it is configured for."""
    found = boto3.Session()
    return found if found.region_name else boto3.Session(region_name=REGION)


def template_parameters(text: str, method: str) -> dict[str, str]:
    """The parameters of `AccessLogs=true AlarmTopic=arn:…`. Raises DeploymentError."""
    given = dict(pair.partition("=")[::2] for pair in text.split())
    known = PARAMETERS.keys() - ({"AccessLogs"} if method == "chalice" else set())
    for name in given.keys() - known:
        raise DeploymentError(f"{name} is no parameter; there are {', '.join(sorted(known))}")
    return given


def run(arguments: argparse.Namespace, stage: Stage) -> None:
    """Do one command. Raises DeploymentError, and the SDK's errors."""
    given = os.environ.get("PARAMETERS", "")
    match arguments.command:
        case "package":
            use_newer_python("-m", "infra")
            how_to_deploy(package(stage), stage)
            if not has_key_source(stage):
                print(f"\nBefore you deploy it: {no_key_source(stage)}", file=sys.stderr)
        case "resources":
            resources(stage, template_parameters(given, "chalice"))
        case "deploy":
            parameters = template_parameters(given, arguments.method)
            check_settings(stage, arguments.method)
            use_newer_python("-m", "infra")
            deploy(stage, arguments.method, parameters)
        case "token":
            own = environment_of(stage)
            print(stage_token(stage, own, session(), arguments.user, arguments.scope))
        case "destroy":
            destroy(stage, os.environ.get("CONFIRM", ""))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("package", "write the template and the code"),
        ("resources", "make what `chalice deploy` needs, and attach what it lacks"),
        ("deploy", "take it to AWS"),
        ("token", "print a token for a user of a deployed stage"),
        ("destroy", "delete a deployment"),
    ):
        described = commands.add_parser(command, help=text)
        described.add_argument("stage")
        if command == "token":
            described.add_argument("user")
            described.add_argument("scope", nargs="?", default=DEFAULT_SCOPE)
        if command == "deploy":
            described.add_argument("--with", dest="method", choices=METHODS, default=METHODS[0])
    arguments = parser.parse_args()
    try:
        stage = Stage(arguments.stage)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        run(arguments, stage)
    except (BotoCoreError, ClientError, DeploymentError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
