"""`make audit` tells a vulnerable package from a database that can't be reached."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.configuration import PROJECT
from tools.audit import main, sets_of_pins

LOCK = PROJECT / "requirements" / "uv.txt"
FINE: dict[str, Any] = {"name": "fine", "version": "1.0", "vulns": []}
VULNERABLE: dict[str, Any] = {
    "name": "old",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}],
}
SKIPPED = {"name": "own", "skip_reason": "Dependency not found"}


def pip_audit(tmp_path: Path, *dependencies: Any, stderr: str = "", status: int = 0) -> str:
    """Return the path of a stand-in for pip-audit with this answer."""
    answer = json.dumps({"dependencies": dependencies, "fixes": []}) if dependencies else ""
    command = tmp_path / "pip-audit"
    command.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"print({answer!r})\nprint({stderr!r}, file=sys.stderr)\nsys.exit({status})\n"
    )
    command.chmod(0o755)
    return str(command)


def test_packages_without_a_known_vulnerability_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([pip_audit(tmp_path, FINE), str(LOCK)]) == 0
    assert capsys.readouterr().out == "No known vulnerabilities in 1 packages.\n"


def test_a_vulnerable_package_fails_with_the_version_that_is_fixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([pip_audit(tmp_path, FINE, VULNERABLE, status=1), str(LOCK)]) == 1
    assert capsys.readouterr().out == "old 1.0: PYSEC-1, fixed in 1.1\n"


def test_a_package_that_alone_cannot_be_looked_up_fails(tmp_path: Path) -> None:
    assert main([pip_audit(tmp_path, FINE, SKIPPED), str(LOCK)]) == 1


@pytest.mark.parametrize(
    "error",
    [
        "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed",
        "requests.exceptions.ConnectionError: Max retries exceeded",
        "requests.exceptions.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    ],
)
def test_an_unreachable_database_passes_and_says_that_nothing_was_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: str
) -> None:
    assert main([pip_audit(tmp_path, stderr=error, status=1), str(LOCK)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("NOTHING WAS AUDITED: the database of vulnerabilities can't be")
    assert said.out == ""


def test_a_database_that_knows_no_package_counts_as_unreachable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([pip_audit(tmp_path, SKIPPED, SKIPPED), str(LOCK)]) == 0
    assert "NOTHING WAS AUDITED" in capsys.readouterr().err


def test_any_other_failure_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = pip_audit(tmp_path, stderr="usage: pip-audit [-h]", status=2)
    assert main([failed, str(LOCK)]) == 2
    assert "usage" in capsys.readouterr().err


def test_each_package_is_looked_up_once_in_each_of_its_versions() -> None:
    text = (
        "one==1.0 ; python_version < '3.13' \\\n    --hash=sha256:00\none==1.0\n"
        "Other_one[extra]==2.0 \\\n    --hash=sha256:00\none==1.1\n"
    )
    assert sets_of_pins(text) == [["one==1.0", "other-one==2.0"], ["one==1.1"]]
