"""What the documents name exists."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from docs.settings_table import PAGE, page
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


def test_the_settings_are_those_of_the_settings_object() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "python docs/settings_table.py writes it"


IN_CI_ALONE = (
    "make test",
    "make faults",
    "make fuzz",
    "make mutants",
    "make e2e",
    "make docs",
    "make bench",
)
NEWCOMER = "test_a_newcomer_gets_from_clone_to_a_deployed_websocket"
COMMANDS = {
    "make run": "test_what_run_prints_can_be_pasted",
    ".venv/bin/websockets": "test_the_websocket_client_receives_what_curl_sends",
    "curl": "test_the_websocket_client_receives_what_curl_sends",
    "make PYTHON=": "test_a_half_made_environment_is_made_again_while_another_command_waits_for_it",
    "make demo": "test_demo_shows_who_received_the_message",
    "make token": "test_token_prints_a_token_and_nothing_else",
    "make deploy": "test_everything_is_there",  # in the emulator, by both ways
    "make destroy": "test_everything_is_there",  # where the stage that it looks at ends
    "make resources": NEWCOMER,
    "chalice deploy": NEWCOMER,
    "chalice local": NEWCOMER,
    "chalice logs": NEWCOMER,
    "chalice invoke": NEWCOMER,
    "chalice url": NEWCOMER,
    "chalice delete": NEWCOMER,
    "chalice package": "test_the_template_is_sound",
    "python -m infra token": NEWCOMER,
    "make package": "test_the_template_is_sound",
    "python3 -c": "test_the_configurations_command_makes_master_keys",
    "python docs/settings_table.py": "test_the_settings_are_those_of_the_settings_object",
    ".venv/bin/chalice local": "test_alone_it_serves_with_tables_of_its_own",
    ".venv/bin/python -m bench": "make bench",  # which runs each
    "make lock": "test_lock_compiles_each_file_with_hashes_and_the_first_constrains_the_others",
    "make simulate": "test_simulate_draws_what_the_documents_show",
    "make coverage": "test_coverage_says_what_is_not_reached_and_fails",
    "make audit": "test_audit_names_what_is_vulnerable_and_fails",
    **{command: command for command in IN_CI_ALONE},
}
"""How a command of a document's begins, and the test or the line of .ci/run that runs it."""
IN_CI = (PROJECT / ".ci" / "run").read_text()


def commands(document: Path) -> list[str]:
    """What the shell would run, in blocks a command a line, and between words."""
    text = document.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    joined = re.sub(r"\\\n\s*|(?<=,)\n\s+", " ", "".join(blocks))
    within = re.findall(r"`((?:chalice|make|python3?|\.venv/bin/\w+) [^`]+)`", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")] + within


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_run_by_a_test(document: Path) -> None:
    functions = set().union(*FUNCTIONS.values())
    for command in commands(document):
        [begin] = [begin for begin in COMMANDS if command.startswith(begin)]
        by = COMMANDS[begin]
        assert by in functions or re.search(rf"^{by}( |$)", IN_CI, re.MULTILINE)
