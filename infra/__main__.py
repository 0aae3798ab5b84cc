"""`python -m infra package STAGE`: what `make package` does."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from infra.policies import policy
from infra.stage import FUNCTIONS, PROJECT, Stage
from infra.template import merge_template

BUILDS = PROJECT / ".herald" / "build"
MAX_ZIP_BYTES = 10_000_000
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
    for function in FUNCTIONS:
        _write(folder / ".chalice" / f"{function}.json", policy(stage, function))
    _write(folder / ".chalice" / "config.json", configuration(stage))
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
                    **functions.get(function, {}),
                }
                for function in FUNCTIONS
            },
        }
    }
    return config


def package(stage: Stage) -> None:
    """Write the template and the functions' code, ready for CloudFormation."""
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
    size = code.stat().st_size
    if size > MAX_ZIP_BYTES:
        raise SystemExit(f"{code} has {size:,} bytes; {MAX_ZIP_BYTES:,} are allowed")
    packages = sorted({name.partition("/")[0] for name in zipfile.ZipFile(code).namelist()})
    where = out.relative_to(PROJECT)
    print(f"{where}/sam.json        the template")
    print(f"{where}/deployment.zip  {size / 1e6:.1f} MB: {', '.join(packages)}")
    print(f"""
Deploy it with the AWS CLI, into the region that it is configured for:

  aws cloudformation package --template-file {where}/sam.json \\
    --s3-bucket YOUR-BUCKET --output-template-file {where}/packaged.yaml
  aws cloudformation deploy --template-file {where}/packaged.yaml \\
    --stack-name herald-{stage.name} --capabilities CAPABILITY_IAM""")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("package", help="for CloudFormation").add_argument("stage")
    arguments = parser.parse_args()
    try:
        stage = Stage(arguments.stage)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    package(stage)
    return 0


if __name__ == "__main__":
    sys.exit(main())
