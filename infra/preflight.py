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
from collections.abc import MutableMapping
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoRegionError
from chalice.config import Config

from chalicelib.stage import KEY_SOURCES
from infra.bucket import Bucket
from infra.chalice_deployment import kms_key_of, missing_resources
from infra.chalice_record import ChaliceRecord
from infra.cloudformation import DeploymentError, Stack
from infra.configuration import StageConfiguration, needed_by
from infra.policies import KEY_OF_TEMPLATE, policy
from infra.python_runtime import chalice, run_again, use_newer_python
from infra.stage import FUNCTIONS, Stage
from infra.wheels import WHEELS, Wheels, without_hashes


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
    configuration = StageConfiguration.read(stage, project)
    try:
        configuration.check()
    except DeploymentError as error:
        raise SystemExit(str(error)) from None
    use_newer_python()
    _hold_lock(project)
    kms_key: str | dict[str, str] | None = KEY_OF_TEMPLATE if command == "package" else None
    if command == "deploy":
        kms_key = _check_resources(project, configuration, profile)
    for variable in [name for name in environ if name.startswith("HERALD_")]:
        if variable not in configuration.variables:
            del environ[variable]
    environ.update({**stage.queue_variable, **configuration.variables})
    _write_policies(project, configuration, packaged=command == "package", kms_key=kms_key)
    _leave_out_unneeded_secrets()
    if command in ("deploy", "package"):
        environ.update(_locked_packages(project, configuration))
    _leave_no_bytecode(project)


def _check_resources(
    project: Path, configuration: StageConfiguration, profile: str | None
) -> str | None:
    """Check that the stage has what Chalice can't make, and bring Chalice's record up to date.

    Starts the command again if the record has changed, because Chalice has read the old one
    already. Returns the customer's KMS key, if the resources have one. Raises SystemExit.
    """
    stage = configuration.stage
    try:
        session = boto3.Session(profile_name=profile)
        _check_method(stage, session)
        own_keys = any(configuration.variables.get(source) for source in KEY_SOURCES)
        missing = missing_resources(stage, session, signing_key=not own_keys)
        if missing:
            raise SystemExit(
                f"The stage {stage.name} lacks what Chalice can't make: {', '.join(missing)}.\n"
                f"Create it first, once:\n\n  make resources STAGE={stage.name}\n"
            )
        kms_key = kms_key_of(stage, session)
        record = ChaliceRecord(project, stage.name, Bucket(session, stage))
        fetched = record.fetch()
    except NoRegionError:
        return None  # Chalice says so itself, and how to set one
    except (BotoCoreError, ClientError) as error:
        raise SystemExit(
            f"The resources of the stage {stage.name} can't be checked: {error}"
        ) from None
    if fetched:
        print("Using the record of this stage's last deployment, which another clone has shared.")
        run_again(sys.executable, chalice(), *sys.argv[1:])
    atexit.register(_share, record)
    return kms_key


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
    project: Path,
    configuration: StageConfiguration,
    *,
    packaged: bool,
    kms_key: str | dict[str, str] | None,
) -> None:
    """Write each function's policy to the file that Chalice's configuration names."""
    folder = project / ".chalice" / "policies"
    folder.mkdir(exist_ok=True)
    stage = configuration.stage
    for function in FUNCTIONS:
        log_group = stage.log_group(function) if packaged else stage.chalice_log_group(function)
        document = policy(configuration, function, log_group=log_group, kms_key=kms_key)
        (folder / f"{function}.json").write_text(json.dumps(document, indent=2) + "\n")


def _leave_out_unneeded_secrets() -> None:
    """Make Chalice give each function only the secrets that it needs.

    Chalice itself can add variables to a function, but can't leave out those of the stage.
    """
    configured: property = vars(Config)["environment_variables"]

    def needed(config: Config) -> dict[str, str]:
        return needed_by(config.function_name, configured.__get__(config))

    Config.environment_variables = property(needed)  # type: ignore[method-assign, assignment]


def _locked_packages(project: Path, configuration: StageConfiguration) -> dict[str, str]:
    """Download the packages for Lambda by their hashes.

    Returns the variables that make Chalice take these and no others. Raises SystemExit.
    """
    requirements = project / "requirements.txt"
    if not requirements.exists():
        return {}
    unlocked = without_hashes(requirements)
    if unlocked:
        print(
            f"requirements-dev.txt has no hashes for {', '.join(unlocked)}. Packages are not"
            " compared with any hash. Run `make lock` to add them.",
            file=sys.stderr,
        )
        return {}
    wheels = Wheels(WHEELS / configuration.stage.name)
    try:
        wheels.download(requirements, configuration.architecture)
    except DeploymentError as error:
        raise SystemExit(str(error)) from None
    return wheels.variables


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
