"""The cases of the Autobahn test suite, against the local gateway and an app that echoes.

The suite's own runner needs Python 2; kosoku runs the same files. `docs/decisions/0017` compares
the two, and says why the cases 9, 12 and 13 are excluded.
"""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from gateway.configuration import PROJECT
from tests.support.clients import configured, served

VENV = PROJECT / ".venv" / "e2e"
MIRROR = PROJECT / "tests" / "apps" / "mirror"
EXCLUDED = ("9.*", "12.*", "13.*")
CASES = 247


class Deviation(NamedTuple):
    """Cases whose verdict isn't OK, with the gateway's close code and the reason."""

    verdict: str
    code: int
    reason: str
    cases: tuple[str, ...]


DEVIATIONS = (
    Deviation(
        "FAILED",
        1009,
        "API Gateway accepts no frame over 32 KB; these have 64 KB.",
        ("1.1.6", "1.1.7", "1.1.8", "1.2.6", "1.2.7", "1.2.8"),
    ),
    Deviation(
        "FAILED",
        1003,
        "API Gateway accepts no binary frames.",
        ("1.2.1", "1.2.2", "1.2.3", "1.2.4", "1.2.5"),
    ),
    Deviation(
        "NON-STRICT",
        1002,
        "The frame after a message violates the protocol and ends the connection at once. The "
        "echo of the message, which a function sends, comes too late.",
        ("3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15"),
    ),
    Deviation(
        "NON-STRICT",
        1007,
        "Text that isn't UTF-8 is refused when the message is complete, not at its first error.",
        ("6.4.1", "6.4.2", "6.4.3", "6.4.4"),
    ),
    Deviation(
        "INFORMATIONAL",
        1009,
        "A message of 256 KB before a close; the suite accepts any answer.",
        ("7.1.6",),
    ),
    Deviation(
        "INFORMATIONAL",
        1002,
        "A close code that RFC 6455 doesn't define; the suite accepts any answer.",
        ("7.13.1", "7.13.2"),
    ),
)


TRANSLATED = {
    "case2_10.py",
    "case5_16.py",
    "case5_17.py",
    "case6_3_1.py",
    "case6_4_1.py",
    "case6_x_x.py",
    "case7_7_X.py",
    "case7_9_X.py",
    "case10_1_1.py",
}
"""The files that kosoku translated to Python 3: `range`, `//`, `print()`, bytes, classes."""


def test_kosokus_cases_are_those_of_the_suite() -> None:
    [packages] = (VENV / "lib").glob("python3*/site-packages")
    suite = sources(packages / "autobahntestsuite" / "case")
    kosoku = sources(packages / "kosoku" / "cases")
    assert suite.keys() == kosoku.keys()
    assert {name for name in suite if suite[name] != kosoku[name]} == TRANSLATED


def sources(folder: Path) -> dict[str, str]:
    """Read the modules of the cases that aren't excluded, by name."""
    modules = [path for path in folder.glob("case*.py") if not path.match("case9_*")]
    return {path.name: path.read_text() for path in modules if not path.match("case12_*")}


def test_only_the_expected_cases_deviate(tmp_path: Path) -> None:
    results = autobahn(tmp_path)
    assert len(results) == CASES
    deviating = {
        case: (result["behavior"], result["remoteCloseCode"])
        for case, result in results.items()
        if (result["behavior"], result["behaviorClose"]) != ("OK", "OK")
    }
    expected = {case: (one.verdict, one.code) for one in DEVIATIONS for case in one.cases}
    assert deviating == expected


def autobahn(reports: Path) -> dict[str, Any]:
    """Run the cases. Return their results by number, and write the report to a folder."""
    configuration = dataclasses.replace(configured(), project=MIRROR)
    with served(configuration) as running:
        excluded = [word for cases in EXCLUDED for word in ("--exclude", cases)]
        ended = subprocess.run(
            [VENV / "bin" / "kosoku", running.websocket, *excluded, "--outdir", reports],
            capture_output=True,
            text=True,
            check=False,  # it fails if any case does
        )
    index = reports / "index.json"
    assert index.exists(), ended.stdout + ended.stderr
    [results] = json.loads(index.read_text()).values()
    return dict(results)
