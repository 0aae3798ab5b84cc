"""The commands of `python -m infra`, as far as they need no AWS."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from chalicelib.stage import KEY_SOURCES
from gateway.configuration import PROJECT
from infra import chalice_deployment, cli
from infra.chalice_deployment import ChaliceDeployment
from infra.cloudformation import DeploymentError
from infra.configuration import StageConfiguration
from infra.stage import Stage


def test_a_wrong_stage_name_is_answered_by_one_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "infra", "package", "No!"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "STAGE holds 'No!'; allowed: up to 20 of a-z and 0-9, a letter first, but not local"
    ]


def run_for_qa(command: str, project: Path = PROJECT) -> "subprocess.CompletedProcess[str]":
    """Run a command for the stage qa, with an AWS that can't be reached."""
    return subprocess.run(
        [sys.executable, "-m", "infra", command, "qa"],
        cwd=project,
        env={**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stage_without_a_key_source_is_refused_before_anything_is_deployed() -> None:
    refused = run_for_qa("deploy")
    assert (refused.returncode, refused.stdout) == (1, "")
    told = refused.stderr
    assert told.startswith("Nothing was deployed: the stage qa has no key source")
    for remedy in (*KEY_SOURCES, ".chalice/config.json", "make resources STAGE=qa"):
        assert remedy in told


@pytest.mark.parametrize("command", ["package", "resources", "deploy"])
@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("HERALD_FANOUT_BATCH_SECONDS", "long", "HERALD_FANOUT_BATCH_SECONDS holds 'long'"),
        ("HERALD_MESSAGE_RATE", "fast", "HERALD_MESSAGE_RATE holds 'fast'; allowed: a number"),
        ("HERALD_MESAGE_RATE", "5", "did you mean HERALD_MESSAGE_RATE?"),
        ("HERALD_JWT_SECRET", "local-" + "x" * 43, "HERALD_JWT_SECRET holds a secret that begins"),
    ],
)
def test_a_setting_that_functions_would_refuse_is_refused_before_anything_is_made(
    checkout: Path, command: str, variable: str, value: str, line: str
) -> None:
    path = checkout / ".chalice" / "config.json"
    plain = path.read_text()
    config = json.loads(plain)
    config["stages"]["qa"] = {"environment_variables": {variable: value}}
    path.write_text(json.dumps(config))
    try:
        refused = run_for_qa(command, checkout)
    finally:
        path.write_text(plain)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(".chalice/config.json: ")
    assert line in refused.stderr


def test_parameters_of_the_template_are_separated_by_spaces() -> None:
    text = "AccessLogs=true AlarmTopic=arn:aws:sns:eu-central-1:1:a=b"
    assert cli.template_parameters(text, "cloudformation") == {
        "AccessLogs": "true",
        "AlarmTopic": "arn:aws:sns:eu-central-1:1:a=b",
    }


@pytest.mark.parametrize(
    ("text", "method"), [("Nonsense=1", "cloudformation"), ("AccessLogs=true", "chalice")]
)
def test_a_parameter_that_the_method_does_not_have_is_refused(text: str, method: str) -> None:
    name = text.partition("=")[0]
    with pytest.raises(DeploymentError, match=f"Unknown parameter {name}; allowed: A"):
        cli.template_parameters(text, method)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("ThrottlingRate=fast", "a number from 0"),
        ("ThrottlingBurst=", "a number from 0"),
        ("HealthThrottlingRate=-1", "a number from 0"),
        ("ReadThrottlingRate=nan", "a number from 0"),
        ("ConnectThrottlingBurst=inf", "a number from 0"),
        ("WorkerConcurrency=1001", "a number from 0 to 1000"),
    ],
)
@pytest.mark.parametrize("method", cli.METHODS)
def test_a_parameter_that_is_not_an_allowed_number_is_refused(
    text: str, allowed: str, method: str
) -> None:
    name, _, value = text.partition("=")
    with pytest.raises(DeploymentError) as refused:
        cli.template_parameters(text, method)
    assert str(refused.value) == f"{name} holds {value!r}; allowed: {allowed}"
    assert cli.template_parameters(f"{name}=2", method) == {name: "2"}


@pytest.mark.parametrize("method", cli.METHODS)
def test_a_parameter_that_is_not_an_allowed_choice_is_refused(method: str) -> None:
    with pytest.raises(DeploymentError) as refused:
        cli.template_parameters("PingRoute=off", method)
    assert str(refused.value) == "PingRoute holds 'off'; allowed: true or false"
    assert cli.template_parameters("PingRoute=false", method) == {"PingRoute": "false"}


def test_a_stage_is_destroyed_only_if_its_name_confirms_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONFIRM", "prod")
    with pytest.raises(SystemExit, match="make destroy STAGE=dev CONFIRM=dev"):
        cli.main(["destroy", "dev"])


def test_a_stage_cannot_be_deployed_by_the_other_method(
    session: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = StageConfiguration(Stage("twice"))
    monkeypatch.setattr(chalice_deployment, "PROJECT", tmp_path)
    by_chalice = ChaliceDeployment(stage, session)
    by_chalice.make_resources({})
    with pytest.raises(DeploymentError, match="was deployed by the other method"):
        cli._deploy(stage, "cloudformation", {})
    by_chalice.destroy()


def test_resources_are_made_and_everything_is_destroyed_by_commands(
    session: boto3.Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(chalice_deployment, "PROJECT", tmp_path)
    monkeypatch.setenv("CONFIRM", "commands")
    monkeypatch.delenv("PARAMETERS", raising=False)
    assert cli.main(["resources", "commands"]) == 0
    assert "chalice deploy --stage commands" in capsys.readouterr().out
    assert cli.main(["token", "commands", "alice"]) == 0
    assert capsys.readouterr().out.count(".") == 2  # a JWT
    assert cli.main(["destroy", "commands"]) == 0
    assert capsys.readouterr().out == "The stage commands and its tables are gone.\n"
    assert cli.main(["token", "commands", "alice"]) == 1
    assert "ResourceNotFoundException" in capsys.readouterr().err
