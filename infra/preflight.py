"""The checks and files that a deploying command of Chalice needs before it imports the app.

`chalice deploy` can't succeed without what Chalice can't make. If that is missing, it stops here
with a message that says what to run; otherwise each function gets its own policy.
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
from infra.bucket import Bucket
from infra.chalice_deployment import missing_resources
from infra.chalice_record import ChaliceRecord
from infra.cloudformation import Stack
from infra.policies import policy
from infra.python_runtime import chalice, run_again, use_newer_python
from infra.stage import FUNCTIONS, Stage


def prepare(
    environ: MutableMapping[str, str], command: str, stage_name: str, profile: str | None
) -> None:
    """Check that the stage can work, and write the policies, which Chalice reads later.

    Args:
        environ: The environment that the app is imported with; HERALD_ variables of the shell are
            removed, since the functions won't have them.
        command: The name of Chalice's command; only `deploy` calls AWS.
        stage_name: The stage that the command is for.
        profile: The AWS profile that the command names, if any.

    Raises:
        SystemExit: With a message that says what is wrong.
    """
    try:
        stage = Stage(stage_name)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    project = Path.cwd()
    config: dict[str, Any] = json.loads((project / ".chalice" / "config.json").read_text())
    configured = stage_environment(config, stage.name)
    _check_settings(stage, configured)
    use_newer_python()
    _hold_lock(project)
    if command == "deploy":
        _check_resources(project, stage, profile, configured)
    for variable in [name for name in environ if name.startswith("HERALD_")]:
        if variable not in configured:
            del environ[variable]
    environ.update({**stage.queue_variable, **configured})
    _write_policies(project, stage, config, packaged=command == "package")
    _leave_no_bytecode(project)


def _check_settings(stage: Stage, configured: Mapping[str, str]) -> None:
    """Check that the functions will accept the stage's settings. Raises SystemExit."""
    try:
        Settings.from_environ({**configured, "AWS_LAMBDA_FUNCTION_NAME": stage.function("sweep")})
    except SettingsError as error:
        raise SystemExit(f".chalice/config.json: {error}") from None


def _check_resources(
    project: Path, stage: Stage, profile: str | None, configured: Mapping[str, str]
) -> None:
    """Check that the stage has what Chalice can't make, and bring Chalice's record up to date.

    Starts the command again if the record has changed, because Chalice has read the old one
    already. Raises SystemExit.
    """
    try:
        session = boto3.Session(profile_name=profile)
        _check_method(stage, session)
        own_keys = any(configured.get(source) for source in KEY_SOURCES)
        missing = missing_resources(stage, session, signing_key=not own_keys)
        if missing:
            raise SystemExit(
                f"The stage {stage.name} lacks what Chalice can't make: {', '.join(missing)}.\n"
                f"Create it first, once:\n\n  make resources STAGE={stage.name}\n"
            )
        record = ChaliceRecord(project, stage.name, Bucket(session, stage))
        fetched = record.fetch()
    except NoRegionError:
        return  # Chalice says so itself, and how to set one
    except (BotoCoreError, ClientError) as error:
        raise SystemExit(
            f"The resources of the stage {stage.name} can't be checked: {error}"
        ) from None
    if fetched:
        print("Using the record of this stage's last deployment, which another clone has shared.")
        run_again(sys.executable, chalice(), *sys.argv[1:])
    atexit.register(_share, record)


def _check_method(stage: Stage, session: boto3.Session) -> None:
    """Check that the stage wasn't deployed by CloudFormation. Raises SystemExit."""
    if Stack(session, stage.stack_name).exists():
        raise SystemExit(
            f"The stage {stage.name} is a CloudFormation stack: `make deploy"
            f" STAGE={stage.name}` deploys it, and `make destroy` deletes it."
        )


def _share(record: ChaliceRecord) -> None:
    """Share Chalice's record with other clones, when the command ends."""
    try:
        record.share()
    except (BotoCoreError, ClientError) as error:
        print(f"Other clones don't get Chalice's record of this stage: {error}", file=sys.stderr)


def _write_policies(
    project: Path, stage: Stage, config: Mapping[str, Any], *, packaged: bool
) -> None:
    """Write each function's policy to the file that `config`, Chalice's configuration, names."""
    folder = project / ".chalice" / "policies"
    folder.mkdir(exist_ok=True)
    traced = config.get("stages", {}).get(stage.name, {}).get("xray", config.get("xray", False))
    for function in FUNCTIONS:
        log_group = stage.log_group(function) if packaged else stage.chalice_log_group(function)
        document = policy(stage, function, log_group=log_group, traced=traced)
        (folder / f"{function}.json").write_text(json.dumps(document, indent=2) + "\n")


def _leave_no_bytecode(project: Path) -> None:
    """Keep this machine's bytecode out of the package, since Chalice packs all of chalicelib."""
    sys.dont_write_bytecode = True
    for cache in list((project / "chalicelib").rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)


def _hold_lock(project: Path) -> None:
    """Wait until no other command deploys from this checkout, and keep others out until this one
    ends: the policy files are for one stage at a time."""
    lock = os.open(project / ".chalice" / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting for another deployment from this checkout.", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)
