"""What the documents name exists."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from gateway.configuration import PROJECT

DOCUMENTS = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")]
FUNCTIONS: dict[str, set[str]] = defaultdict(set)
for path in (PROJECT / "tests").rglob("test_*.py"):
    FUNCTIONS[path.name] |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_and_links(document: Path) -> None:
    text = document.read_text()
    for file, function in re.findall(r"(test_\w+\.py)::(\w+)", text):
        assert function in FUNCTIONS[file], f"{file} has no {function}"
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"there is no {target}"


def test_every_rule_of_the_standards_is_answered() -> None:
    """A rule without a test says why it needs none."""
    text = (PROJECT / "docs" / "security.md").read_text()
    assert len(re.findall(r"test_\w+\.py::test_", text)) > 80
    for rule in [f"3.{number}" for number in range(1, 13)] + [
        f"10.{number}" for number in range(1, 9)
    ]:
        assert f"\n| {rule} " in text
    for line in text.splitlines():
        if line.startswith("| ") and line.endswith("| |"):
            assert len(line.split("|")[2].split()) >= 2, line
