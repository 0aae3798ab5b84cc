"""The steps of `chalice deploy`, `package` and `plan` before they import the app."""

import atexit
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from chalice.config import Config

from gateway.configuration import PROJECT
from infra import chalice_deployment
from infra.bucket import Bucket
from infra.chalice_deployment import ChaliceDeployment
from infra.chalice_record import EMPTY, KEY
from infra.cloudformation import Stack
from infra.configuration import StageConfiguration
from infra.policies import KEY_OF_TEMPLATE, policy
from infra.stage import FUNCTIONS, Stage
from tests.infra.commands import prepare

DEV = Stage("dev")
KEYS = json.dumps({"keys": [{"kty": "oct", "kid": "k", "k": "A" * 43}]})


@pytest.mark.parametrize(
    ("command", "group", "kms_key"),
    [("package", DEV.log_group, KEY_OF_TEMPLATE), ("plan", DEV.chalice_log_group, None)],
)
def test_each_function_gets_a_policy_of_its_own(
    project: Path, command: str, group: Callable[[str], str], kms_key: Any
) -> None:
    prepare(command)
    configuration = StageConfiguration(DEV)
    for function in FUNCTIONS:
        written = json.loads((project / ".chalice" / "policies" / f"{function}.json").read_text())
        expected = policy(configuration, function, log_group=group(function), kms_key=kms_key)
        assert written == expected


def test_the_configuration_names_every_policy_that_is_written() -> None:
    config = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    assert {
        function: settings["iam_policy_file"]
        for function, settings in config["lambda_functions"].items()
    } == {function: f"policies/{function}.json" for function in FUNCTIONS}


def test_the_worker_is_declared_for_the_queue_of_the_stage(project: Path) -> None:
    assert prepare("package", "qa")["HERALD_FANOUT_QUEUE_URL"].endswith("/herald-qa-fanout")


def test_a_configured_queue_wins_over_the_stages_own(project: Path) -> None:
    own = {"HERALD_FANOUT_QUEUE_URL": "https://example.com/own"}
    assert prepare("package", "qa", configured=own) == own


def test_the_shells_settings_do_not_reach_the_functions(project: Path) -> None:
    seen = prepare(
        "package",
        "qa",
        configured={"HERALD_MESSAGE_RATE": "5"},
        HERALD_FANOUT_QUEUE_URL="http://127.0.0.1/herald-fanout",
        HERALD_JWT_SECRET="local-secret-of-the-developers-own-make-run-here",
        HERALD_MESAGE_RATE="5",
        PATH="/bin",
    )
    assert seen.keys() == {"HERALD_MESSAGE_RATE", "HERALD_FANOUT_QUEUE_URL", "PATH"}
    assert seen["HERALD_FANOUT_QUEUE_URL"].endswith("/herald-qa-fanout")


def test_chalice_gives_each_function_only_the_secrets_that_it_needs(project: Path) -> None:
    secrets = {"HERALD_JWT_SECRET": "s" * 32, "HERALD_ENCRYPTION_KEYS": KEYS}
    prepare("package", "dev", configured={**secrets, "HERALD_MESSAGE_RATE": "5"})
    config = json.loads((project / ".chalice" / "config.json").read_text())
    given = {
        function: set(Config("dev", function, config_from_disk=config).environment_variables)
        for function in FUNCTIONS
    }
    assert {len(names) for names in given.values()} == {1, 2, 3}
    assert given["sweep"] == given["websocket_disconnect"] == {"HERALD_MESSAGE_RATE"}
    assert given["rest_authorizer"] == {"HERALD_MESSAGE_RATE", "HERALD_JWT_SECRET"}
    assert given["deliver_queued"] == {"HERALD_MESSAGE_RATE", "HERALD_ENCRYPTION_KEYS"}


def test_variables_that_lambda_would_refuse_stop_the_command(project: Path) -> None:
    keys = json.dumps({"keys": [{"kty": "oct", "kid": "k", "k": "A" * 5000}]})
    with pytest.raises(SystemExit, match="set HERALD_ENCRYPTION_KEYS_ARN instead"):
        prepare("package", "dev", configured={"HERALD_ENCRYPTION_KEYS": keys})


def test_a_package_without_hashes_causes_a_warning(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "requirements.txt").write_text("herald-own==1.0\n")
    assert "PIP_NO_INDEX" not in prepare("package")
    assert "has no hashes for herald-own==1.0" in capsys.readouterr().err


def test_compiled_modules_of_this_machine_are_not_packaged(project: Path) -> None:
    prepare("package")
    assert list((project / "chalicelib").iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "environ", "line"),
    [
        ("No!", {}, "STAGE holds 'No!'; allowed: up to 20 of a-z and 0-9"),
        ("dev", {"HERALD_MESSAGE_RATE": "fast"}, "HERALD_MESSAGE_RATE holds 'fast'; allowed:"),
    ],
)
def test_a_wrong_stage_or_setting_stops_the_command_with_a_message(
    project: Path, stage: str, environ: dict[str, str], line: str
) -> None:
    with pytest.raises(SystemExit, match=line):
        prepare("package", stage, configured=environ)


def test_an_unreachable_aws_stops_the_deployment_with_a_message(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        SystemExit, match="The resources of the stage dev can't be checked: Could not"
    ):
        prepare("deploy")


def test_an_unknown_profile_stops_the_deployment_with_a_message(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    with pytest.raises(
        SystemExit, match=r"can't be checked: .*profile \(nobody\) could not be found"
    ):
        prepare("deploy", profile="nobody")


def test_a_second_deployment_from_a_checkout_waits_for_the_first(project: Path) -> None:
    holds = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    first = subprocess.Popen(
        [sys.executable, "-c", f"{holds}; print(flush=True); input()", project / ".chalice/.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout is not None
    first.stdout.readline()
    command = "from pathlib import Path; from infra.preflight import _hold_lock"
    second = subprocess.Popen(
        [sys.executable, "-c", f"{command}; _hold_lock(Path.cwd()); print('held')"],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert second.stderr is not None
    assert second.stderr.readline() == "Waiting for another deployment from this checkout.\n"
    assert second.poll() is None
    first.communicate(b"\n")
    assert second.communicate(timeout=30)[0] == "held\n"


# --- The calls of `chalice deploy` to AWS


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """The functions that are registered to run when the command ends."""
    registered: list[Callable[[], object]] = []

    def register(function: Callable[..., object], *arguments: object) -> None:
        registered.append(lambda: function(*arguments))

    monkeypatch.setattr(atexit, "register", register)
    return registered


@pytest.fixture
def prepared(session: boto3.Session, project: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage with the resources that Chalice can't create."""
    monkeypatch.setattr(chalice_deployment, "PROJECT", project)
    stage = Stage("preflight")
    ChaliceDeployment(StageConfiguration(stage), session).make_resources({})
    return stage


def test_a_stage_without_resources_is_not_deployed(session: boto3.Session, project: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        prepare("deploy", "bare")
    message = str(stopped.value)
    assert "table herald-bare-connections" in message
    assert "secret herald-bare-signing-key" in message
    assert "make resources STAGE=bare" in message


def test_a_stage_with_a_key_source_needs_no_signing_key(
    session: boto3.Session, project: Path
) -> None:
    keys = {"HERALD_JWKS_URL": "https://id.example.com/keys"}
    with pytest.raises(SystemExit) as stopped:
        prepare("deploy", "bare", configured=keys)
    assert "signing-key" not in str(stopped.value)


def test_a_stage_of_cloudformation_is_not_deployed_by_chalice(
    session: boto3.Session, project: Path
) -> None:
    stage = Stage("stack")
    bucket = Bucket(session, stage)
    bucket.create()
    topic = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic", "Properties": {}}}}
    stack = Stack(session, stage.stack_name)
    stack.apply(topic, bucket, {})
    with pytest.raises(SystemExit, match="`make deploy STAGE=stack` deploys it"):
        prepare("deploy", "stack")
    stack.delete()


def test_a_deployment_uses_another_clones_record_and_shares_its_own(
    session: boto3.Session,
    project: Path,
    prepared: Stage,
    at_exit: list[Callable[[], object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StartedAgain(Exception):
        """Chalice has read the old record, so the command starts again."""

    def execv(python: str, arguments: list[str]) -> None:
        raise StartedAgain

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # the end of a process unlocks
    bucket = Bucket(session, prepared)
    record = project / ".chalice" / "deployed" / f"{prepared.name}.json"
    bucket.write(KEY, EMPTY)
    with pytest.raises(StartedAgain):
        prepare("deploy", prepared.name)
    assert record.read_bytes() == EMPTY
    prepare("deploy", prepared.name)
    record.write_bytes(b'{"resources": [{"name": "sweep"}]}')  # as Chalice does
    for function in at_exit:
        function()
    assert bucket.read(KEY) == record.read_bytes()
    ChaliceDeployment(StageConfiguration(prepared), session).destroy()
