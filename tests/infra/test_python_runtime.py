"""The choice of the Python that packages the functions."""

import os
import sys
from pathlib import Path

import pytest

from infra import python_runtime


class Replaced(Exception):
    """The process would have been replaced by another."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a machine's interpreters; AWS closes the runtime of the running one."""

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
    """Add an interpreter to the machine; it works if its exit status is 0. Returns its path."""
    python = machine / name
    python.write_text(f"#!/bin/sh\nexit {status}\n")
    python.chmod(0o755)
    return str(python)


def test_a_newer_python_replaces_one_whose_runtime_aws_closes(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(machine, "python3.13", status=127)  # a version manager's shim
    newer = add(machine, "python3.12")
    with pytest.raises(Replaced) as replaced:
        python_runtime.use_newer_python("-m", "infra")
    python = f"/venv-of{newer}"
    assert replaced.value.args == (python, python, "-m", "infra", "deploy", "dev")
    told = capsys.readouterr().err
    assert told.startswith("AWS has announced the end of python3.11 on Lambda")
    assert f"Packaging with {newer} instead." in told


def test_the_running_python_packages_if_the_machine_has_no_newer_one(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python_runtime.use_newer_python()
    assert "This machine has no newer Python" in capsys.readouterr().err
    python_runtime.use_newer_python()  # as a command that this one runs would
    assert capsys.readouterr().err == ""


def test_deploy_python_chooses_the_python_that_packages(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = add(machine, "python-of-ours")
    monkeypatch.setenv("DEPLOY_PYTHON", named)
    with pytest.raises(Replaced) as replaced:
        python_runtime.use_newer_python()
    python = f"/venv-of{named}"
    chalice = str(Path(python).with_name("chalice"))
    assert replaced.value.args == (python, python, chalice, "deploy", "dev")


def test_a_deploy_python_that_does_not_work_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEPLOY_PYTHON", "/nowhere/python3.13")
    with pytest.raises(
        SystemExit, match=r"DEPLOY_PYTHON holds '/nowhere/python3\.13'; allowed: the"
    ):
        python_runtime.use_newer_python()


def test_a_python_whose_runtime_is_open_packages_without_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEPLOY_PYTHON", raising=False)
    monkeypatch.setattr(python_runtime, "CLOSED_UP_TO", (3, 10))
    python_runtime.use_newer_python()
    assert capsys.readouterr().err == ""
