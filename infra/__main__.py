"""`python -m infra package | deploy | destroy STAGE`: what the Makefile's commands do."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from infra.cloudformation import DeploymentError
from infra.code import compile_modules
from infra.deploy import Deployment
from infra.direct import DirectDeployment
from infra.policies import policy
from infra.stage import FUNCTIONS, PROJECT, TABLES, Stage
from infra.template import PARAMETERS, merge_template

BUILDS = PROJECT / ".herald" / "build"
MAX_ZIP_BYTES = 10_000_000
DEFAULTS: dict[str, dict[str, int]] = {
    "sweep": {"lambda_timeout": 120},
    "deliver_queued": {"lambda_memory_size": 1769},  # one whole processor: it is all work
}
WAYS = ("cloudformation", "chalice")
REGION = "us-east-1"  # for what Chalice asks of its region; the template is every region's


def build(stage: Stage) -> Path:
    """A folder of what is deployed, and nothing else, with the stage's configuration in it."""
    folder = BUILDS / stage.name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / ".chalice").mkdir(parents=True)
    for file in ("app.py", "requirements.txt"):
        shutil.copy(PROJECT / file, folder)
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "chalicelib", folder / "chalicelib", ignore=no_cache)
    config = configuration(stage)
    traced = config["stages"][stage.name].get("xray", config.get("xray", False))
    for function in FUNCTIONS:
        document = policy(stage, function, traced=traced)
        _write(folder / ".chalice" / f"{function}.json", document)
    _write(folder / ".chalice" / "config.json", config)
    _write(folder / "merge.json", merge_template(stage))
    return folder


def configuration(stage: Stage) -> dict[str, Any]:
    """`.chalice/config.json`, with the stage's names, and a role for each function. What the
    stage says there itself wins."""
    config: dict[str, Any] = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    own: dict[str, Any] = config["stages"].get(stage.name, {})
    functions: dict[str, Any] = own.get("lambda_functions", {})
    config["stages"] = {
        stage.name: {
            **own,
            "api_gateway_endpoint_type": own.get("api_gateway_endpoint_type", "REGIONAL"),
            "environment_variables": {**stage.environment, **own.get("environment_variables", {})},
            "lambda_functions": {
                function: {
                    "autogen_policy": False,
                    "iam_policy_file": f"{function}.json",
                    **DEFAULTS.get(function, {}),
                    **functions.get(function, {}),
                }
                for function in FUNCTIONS
            },
        }
    }
    return config


def package(stage: Stage) -> Path:
    """Write the template and the functions' code, ready for CloudFormation; where they are."""
    folder = build(stage)
    chalice = Path(sys.executable).with_name("chalice")
    out = folder / "package"
    subprocess.run(
        [chalice, "package", "--stage", stage.name, "--merge-template", "merge.json", out],
        cwd=folder,
        env={"AWS_DEFAULT_REGION": REGION, **os.environ},
        check=True,
        stdout=subprocess.DEVNULL,
    )
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


def deploy(stage: Stage, way: str, parameters: str) -> None:
    """Take a stage to the account and the region that the SDK is configured for.
    `parameters` of the template are written as `AccessLogs=true AlarmTopic=arn:…`."""
    given = dict(pair.partition("=")[::2] for pair in parameters.split())
    known = PARAMETERS.keys() - ({"AccessLogs"} if way == "chalice" else set())
    for name in given.keys() - known:
        raise DeploymentError(f"{name} is no parameter; there are {', '.join(sorted(known))}")
    template, direct = Deployment(stage, session()), DirectDeployment(stage, session())
    if (template if way == "chalice" else direct).exists:
        raise DeploymentError(
            f"The stage {stage.name} was deployed the other way: destroy it first"
        )
    if way == "chalice":
        outputs = direct.deploy(build(stage), given)
    else:
        outputs = template.deploy(package(stage), given)
    print(f"""
Herald is deployed.

  REST       {outputs["EndpointURL"].rstrip("/")}
  WebSocket  {outputs["WebsocketConnectEndpointURL"].rstrip("/")}""")


def destroy(stage: Stage, confirmed: str) -> None:
    """Delete all of a stage, if that is what was meant."""
    tables = ", ".join(stage.named(table) for table in TABLES.values())
    if confirmed != stage.name:
        raise SystemExit(
            f"This deletes the stage {stage.name} and all that is in {tables}.\n"
            f"If that is what you want: make destroy STAGE={stage.name} CONFIRM={stage.name}"
        )
    direct = DirectDeployment(stage, session())
    if direct.exists:
        direct.destroy(build(stage))
    else:
        Deployment(stage, session()).destroy()
    print(f"The stage {stage.name} and its tables are gone.")


def session() -> boto3.Session:
    """The SDK's session, in whatever region it is configured for."""
    found = boto3.Session()
    return found if found.region_name else boto3.Session(region_name=REGION)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("package", "write the template and the code"),
        ("deploy", "take it to AWS"),
        ("destroy", "delete a deployment"),
    ):
        described = commands.add_parser(command, help=text)
        described.add_argument("stage")
        if command == "deploy":
            described.add_argument("--with", dest="way", choices=WAYS, default=WAYS[0])
    arguments = parser.parse_args()
    try:
        stage = Stage(arguments.stage)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        match arguments.command:
            case "package":
                how_to_deploy(package(stage), stage)
            case "deploy":
                deploy(stage, arguments.way, os.environ.get("PARAMETERS", ""))
            case "destroy":
                destroy(stage, os.environ.get("CONFIRM", ""))
    except (BotoCoreError, ClientError, DeploymentError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
