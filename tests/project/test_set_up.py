"""The functions of `tools/set_up.py`."""

import ast
import os
import sys
from pathlib import Path

import pytest

from tools import set_up
from tools.set_up import (
    KEPT,
    MADE,
    Progress,
    SetUpError,
    check_version,
    is_ready,
    run,
    step,
    unlocked,
)


@pytest.fixture
def progress() -> Progress:
    return Progress()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".herald").mkdir()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A complete environment with the Python of the tests."""
    folder = tmp_path / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    Path("requirements.txt").touch()
    (folder / ".ready").write_text(MADE)
    return folder


def test_the_script_has_the_syntax_of_python_3_8() -> None:
    source = Path(set_up.__file__).read_text()
    ast.parse(source, feature_version=(3, 8))


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13)])
def test_an_old_python_is_refused_with_the_version_that_is_needed(version: tuple[int, ...]) -> None:
    with pytest.raises(SetUpError) as refused:
        check_version(version)
    found, cure = str(refused.value).splitlines()
    assert f"is Python {'.'.join(map(str, version))}, and Herald needs Python 3.11" in found
    assert "make PYTHON=" in cure


def test_a_complete_environment_is_ready_until_its_files_change(environment: Path) -> None:
    files = [Path("requirements.txt")]
    assert is_ready(environment, files)
    ready = (environment / ".ready").stat()
    os.utime(files[0], ns=(ready.st_atime_ns, ready.st_mtime_ns + 1))
    assert not is_ready(environment, files)


def test_an_environment_whose_python_is_missing_is_not_ready(environment: Path) -> None:
    (environment / "bin" / "python").unlink()
    (environment / "bin" / "python").symlink_to("/nowhere/python")
    assert not is_ready(environment, [])


def test_an_environment_with_another_python_is_ready_unless_this_one_is_required(
    environment: Path,
) -> None:
    python = environment / "bin" / "python"
    python.unlink()
    python.write_text("#!/bin/sh\necho 3 12 1 /usr\n")
    python.chmod(0o755)
    assert is_ready(environment, [])
    assert not is_ready(environment, [], with_this_python=True)


def test_only_a_folder_that_somebody_else_made_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / ".venv"
    assert not set_up.is_somebodys(folder)
    folder.mkdir()
    assert not set_up.is_somebodys(folder)
    (folder / "bin").mkdir()
    assert set_up.is_somebodys(folder)
    (folder / ".half-made").touch()
    assert not set_up.is_somebodys(folder)
    (folder / ".ready").write_text(KEPT)
    assert set_up.is_somebodys(folder)
    (folder / ".ready").write_text(MADE)
    assert not set_up.is_somebodys(folder)
    (tmp_path / "link").symlink_to(folder)
    assert set_up.is_somebodys(tmp_path / "link")


@pytest.mark.parametrize(
    ("added", "without_hashes"),
    [
        ("Six==1.17.0", []),
        ("typing_extensions>=4", []),
        ("six==1.18.0", ["six==1.18.0"]),
        ("redis[hiredis] == 5.0", ["redis[hiredis] == 5.0"]),
        ("redis[hiredis]==5.0  # ours", ["redis[hiredis]==5.0"]),
        ("redis==5.0 ; python_version < '3.12'", ["redis==5.0 ; python_version < '3.12'"]),
        ("redis ~= 5.0", ["redis ~= 5.0"]),
        ("six == 1.18.0", ["six == 1.18.0"]),
        (
            "ours @ git+https://example.com/ours#egg=ours",
            ["ours @ git+https://example.com/ours#egg=ours"],
        ),
        ("# redis==5.0", []),
        ("-r requirements.txt", []),
        ("", []),
    ],
)
def test_a_requirement_that_is_not_compiled_yet_is_found(
    tmp_path: Path, added: str, without_hashes: list[str]
) -> None:
    locked, source = tmp_path / "requirements-dev.txt", tmp_path / "requirements.txt"
    locked.write_text("six==1.17.0 \\\n    --hash=sha256:0a\ntyping-extensions==4.16.0\n")
    source.write_text(f"{added}\n")
    assert unlocked(locked, [source]) == without_hashes


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting boto3==1.43.106 (from -r requirements-dev.txt)", "collecting boto3==1.43.106"),
        ("  Downloading boto3.whl (139 kB)", "downloading boto3.whl"),
        ("Installing collected packages: a, b, c", "installing 3 packages"),
        ("Looking in indexes: somewhere", None),
        ("", None),
    ],
)
def test_the_current_step_is_read_from_pips_output(line: str, shown: str | None) -> None:
    assert step(line) == shown


def test_a_long_command_prints_lines_with_the_step_and_the_seconds(
    progress: Progress, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(set_up, "EVERY_SECONDS", 0.0)
    run(["sh", "-c", "echo Collecting six==1; sleep 0.5"], "installing", progress, 0)
    out, err = capfd.readouterr()
    assert out == ""
    assert "  0 s: installing" in err.splitlines()
    assert "  0 s: collecting six==1" in err.splitlines()


def test_a_quick_command_prints_nothing(
    progress: Progress, capfd: pytest.CaptureFixture[str]
) -> None:
    run(["echo", "Collecting six==1"], "installing", progress, 0)
    progress.end("done")
    assert capfd.readouterr() == ("", "")


def test_the_error_of_a_failed_command_has_its_last_lines(progress: Progress) -> None:
    with pytest.raises(SetUpError) as failed:
        run(["sh", "-c", "seq 30; echo no such package >&2; exit 3"], "installing", progress, 0)
    shown = str(failed.value).splitlines()
    assert shown[0] == "installing failed. The whole output is in .herald/set-up.log; its end:"
    assert shown[-2:] == ["  30", "  no such package"]
    assert len(shown) == 16
    assert Path(".herald/set-up.log").read_text().startswith("1\n2\n")


@pytest.mark.parametrize(
    ("variables", "own"),
    [
        ({}, False),
        ({"PIP_EXTRA_INDEX_URL": "https://packages.example.com"}, False),
        ({"PIP_INDEX_URL": "https://packages.example.com"}, True),
        ({"PIP_NO_INDEX": "1"}, True),
    ],
)
def test_an_index_in_pips_configuration_is_found(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], own: bool
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert set_up.has_own_index([sys.executable, "-I", "-m", "pip"]) is own
