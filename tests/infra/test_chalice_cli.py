"""What Chalice's commands do before they import the app."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from gateway.configuration import PROJECT
from infra import chalice_cli, python_runtime
from infra.policies import policy
from infra.stage import FUNCTIONS, Stage

DEV = Stage("dev")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, in which a command runs."""
    (tmp_path / ".chalice").mkdir()
    config = (PROJECT / ".chalice" / "config.json").read_text()
    (tmp_path / ".chalice" / "config.json").write_text(config)
    (tmp_path / "chalicelib" / "__pycache__").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setenv("DEPLOY_PYTHON", sys.executable)
    return tmp_path


def prepare(
    command: str,
    stage: str = "dev",
    *,
    configured: dict[str, str] | None = None,
    profile: str | None = None,
    **shell: str,
) -> dict[str, str]:
    """Run a command up to the app's import; the environment that the app then sees.

    `configured` has the stage's variables in `.chalice/config.json`, which Chalice puts before the
    shell's.
    """
    path = Path(".chalice") / "config.json"
    config = json.loads(path.read_text())
    config["stages"][stage] = {"environment_variables": configured or {}}
    path.write_text(json.dumps(config))
    environ = {**shell, **(configured or {})}
    with click.Context(click.Command(command), info_name=command) as context:
        context.params = {"stage": stage, "profile": profile}
        chalice_cli.prepare(environ)
    return environ


@pytest.mark.parametrize(
    ("command", "group"), [("package", DEV.log_group), ("plan", DEV.chalice_log_group)]
)
def test_each_function_gets_a_policy_of_its_own(project: Path, command: str, group: object) -> None:
    assert callable(group)
    prepare(command)
    for function in FUNCTIONS:
        written = json.loads((project / ".chalice" / "policies" / f"{function}.json").read_text())
        assert written == policy(DEV, function, log_group=group(function))


def test_the_configuration_names_every_policy_that_is_written() -> None:
    config = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    assert {
        function: settings["iam_policy_file"]
        for function, settings in config["lambda_functions"].items()
    } == {function: f"policies/{function}.json" for function in FUNCTIONS}


def test_the_worker_is_declared_for_the_queue_of_the_stage(project: Path) -> None:
    assert prepare("package", "qa")["HERALD_FANOUT_QUEUE_URL"].endswith("/herald-qa-fanout")


def test_a_queue_of_the_configuration_wins(project: Path) -> None:
    own = {"HERALD_FANOUT_QUEUE_URL": "https://example.com/own"}
    assert prepare("package", "qa", configured=own) == own


def test_the_shells_settings_are_not_those_of_the_functions(project: Path) -> None:
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


def test_no_compiled_module_of_this_machine_is_packed(project: Path) -> None:
    prepare("package")
    assert list((project / "chalicelib").iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "environ", "line"),
    [
        ("No!", {}, "STAGE holds 'No!'; allowed: up to 20 of a-z and 0-9"),
        ("dev", {"HERALD_MESSAGE_RATE": "fast"}, "HERALD_MESSAGE_RATE holds 'fast'; allowed:"),
    ],
)
def test_what_can_not_work_stops_with_a_line(
    project: Path, stage: str, environ: dict[str, str], line: str
) -> None:
    with pytest.raises(SystemExit, match=line):
        prepare("package", stage, configured=environ)


def test_deploying_stops_with_a_line_where_aws_is_out_of_reach(
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
    with pytest.raises(SystemExit, match="The resources of the stage dev can't be seen: Could not"):
        prepare("deploy")


def test_an_unknown_profile_stops_with_a_line(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    with pytest.raises(SystemExit, match=r"can't be seen: .*profile \(nobody\) could not be found"):
        prepare("deploy", profile="nobody")


@pytest.mark.parametrize("command", ["logs", "url", "gen-policy"])
def test_other_commands_change_nothing(project: Path, command: str) -> None:
    assert prepare(command) == {}
    assert not (project / ".chalice" / "policies").exists()


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


class Replaced(Exception):
    """The process goes on as another."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the interpreters that a machine has, for a process that runs on Python 3.11."""

    def replace(python: str, arguments: list[str]) -> None:
        raise Replaced(python, *arguments)

    monkeypatch.setattr(python_runtime, "CLOSED_UP_TO", sys.version_info[:2])
    monkeypatch.setattr(python_runtime, "_environment", lambda python: Path(f"/venv-of{python}"))
    monkeypatch.setattr(os, "execv", replace)
    monkeypatch.setattr(sys, "argv", ["infra", "deploy", "dev"])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DEPLOY_PYTHON", raising=False)
    return tmp_path


def add(machine: Path, name: str, status: int = 0) -> str:
    """Put an interpreter on the machine; one that ends with a status other than 0 doesn't work."""
    python = machine / name
    python.write_text(f"#!/bin/sh\nexit {status}\n")
    python.chmod(0o755)
    return str(python)


def test_a_newer_python_takes_over_where_aws_closes_the_running_one(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(machine, "python3.13", status=127)  # a version manager's, without the version
    newer = add(machine, "python3.12")
    with pytest.raises(Replaced) as replaced:
        python_runtime.use_newer_python("-m", "infra")
    python = f"/venv-of{newer}"
    assert replaced.value.args == (python, python, "-m", "infra", "deploy", "dev")
    told = capsys.readouterr().err
    assert told.startswith("AWS has announced the end of python3.11 on Lambda")
    assert f"Packaging with {newer} instead." in told


def test_the_running_python_goes_on_where_there_is_no_newer_one(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python_runtime.use_newer_python()
    assert "This machine has no newer Python" in capsys.readouterr().err
    python_runtime.use_newer_python()  # as in the commands that this one runs
    assert capsys.readouterr().err == ""


def test_a_python_can_be_named_to_package_with(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = add(machine, "python-of-ours")
    monkeypatch.setenv("DEPLOY_PYTHON", named)
    with pytest.raises(Replaced) as replaced:
        python_runtime.use_newer_python()
    python = f"/venv-of{named}"
    chalice = str(Path(python).with_name("chalice"))
    assert replaced.value.args == (python, python, chalice, "deploy", "dev")


def test_a_python_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_PYTHON", "/nowhere/python3.13")
    with pytest.raises(
        SystemExit, match=r"DEPLOY_PYTHON holds '/nowhere/python3\.13'; allowed: the"
    ):
        python_runtime.use_newer_python()


def test_a_current_python_packages_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEPLOY_PYTHON", raising=False)
    monkeypatch.setattr(python_runtime, "CLOSED_UP_TO", (3, 10))
    python_runtime.use_newer_python()
    assert capsys.readouterr().err == ""
