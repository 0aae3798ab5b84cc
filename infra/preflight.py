"""What Chalice's commands that deploy or describe a stage need before they import the app.

`chalice deploy` can't succeed without what Chalice can't make, so it stops with a line that names
the cure; with it, each function gets a policy of its own.
"""

import atexit
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoRegionError

from chalicelib.settings import Settings, SettingsError
from chalicelib.stage import KEY_SOURCES
from gateway.configuration import stage_environment
from infra.chalice_deployment import missing_resources
from infra.chalice_record import Record
from infra.cloudformation import Bucket, Stack
from infra.policies import policy
from infra.python_runtime import chalice, run_again, use_newer_python
from infra.stage import FUNCTIONS, Stage


def prepare(
    environ: MutableMapping[str, str], command: str, stage_name: str, profile: str | None
) -> None:
    """Check that the stage can work, and write what Chalice reads after the app's import.

    `command` is one of Chalice's: `deploy` alone asks AWS. Raises SystemExit with a line to print.
    """
    try:
        stage = Stage(stage_name)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    config: dict[str, Any] = json.loads((Path.cwd() / ".chalice" / "config.json").read_text())
    configured = stage_environment(config, stage.name)
    _check_settings(stage, configured)
    use_newer_python()
    _hold_lock(Path.cwd())
    if command == "deploy":
        _check_resources(stage, profile, configured)
    for variable in [name for name in environ if name.startswith("HERALD_")]:
        if variable not in configured:  # the shell's, which no function will see
            del environ[variable]
    environ.update({**stage.queue_variable, **configured})
    _write_policies(Path.cwd(), stage, config, packaged=command == "package")
    _leave_no_bytecode(Path.cwd())


def _check_settings(stage: Stage, configured: Mapping[str, str]) -> None:
    """See that the functions will take the settings that the stage is configured with."""
    try:
        Settings.from_environ({**configured, "AWS_LAMBDA_FUNCTION_NAME": stage.function("sweep")})
    except SettingsError as error:
        raise SystemExit(f".chalice/config.json: {error}") from None


def _check_resources(stage: Stage, profile: str | None, configured: Mapping[str, str]) -> None:
    """See that the stage has what Chalice can't make, and that Chalice knows what it made."""
    try:
        session = boto3.Session(profile_name=profile)
        if Stack(session, f"herald-{stage.name}").exists:
            raise SystemExit(
                f"The stage {stage.name} is a CloudFormation stack: `make deploy"
                f" STAGE={stage.name}` deploys it, and `make destroy` takes it away."
            )
        own_keys = any(configured.get(source) for source in KEY_SOURCES)
        missing = missing_resources(stage, session, signing_key=not own_keys)
        if missing:
            raise SystemExit(
                f"The stage {stage.name} lacks what Chalice can't make: {', '.join(missing)}.\n"
                f"Make it first, once:\n\n  make resources STAGE={stage.name}\n"
            )
        record = Record(Path.cwd(), stage.name, Bucket(session, f"herald-{stage.name}"))
        fetched = record.fetch()
    except NoRegionError:
        return  # Chalice says so itself, with the cure
    except (BotoCoreError, ClientError) as error:
        raise SystemExit(
            f"The resources of the stage {stage.name} can't be seen: {error}"
        ) from None
    if fetched:  # Chalice has read the old one already
        print("Taking over Chalice's record of this stage's last deployment.")
        run_again(sys.executable, chalice(), *sys.argv[1:])
    atexit.register(_share, record)


def _share(record: Record) -> None:
    """Keep Chalice's record where other clones find it, at the end of the command."""
    try:
        record.share()
    except (BotoCoreError, ClientError) as error:
        print(f"Chalice's record stays in this clone alone: {error}", file=sys.stderr)


def _write_policies(
    project: Path, stage: Stage, config: Mapping[str, Any], *, packaged: bool
) -> None:
    """Write a policy for each function, where `config`, of Chalice, says that it is."""
    folder = project / ".chalice" / "policies"
    folder.mkdir(exist_ok=True)
    traced = config.get("stages", {}).get(stage.name, {}).get("xray", config.get("xray", False))
    for function in FUNCTIONS:
        group = stage.log_group(function) if packaged else stage.chalice_log_group(function)
        document = policy(stage, function, log_group=group, traced=traced)
        (folder / f"{function}.json").write_text(json.dumps(document, indent=2) + "\n")


def _leave_no_bytecode(project: Path) -> None:
    """Keep this machine's compiled modules out of the package: Chalice packs all of chalicelib."""
    sys.dont_write_bytecode = True
    for cache in list((project / "chalicelib").rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)


def _hold_lock(project: Path) -> None:
    """Let one command at a time deploy from a checkout, until it ends: the policies are one
    stage's."""
    lock = os.open(project / ".chalice" / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting for another deployment from this checkout.", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)
