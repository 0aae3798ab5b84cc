"""The tests, files, modules and commands that the documents name."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from docs.check_site import complaints, diagrams_of
from docs.settings_table import PAGE, page
from gateway.configuration import PROJECT

DOCUMENTS = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")]
FUNCTIONS: dict[str, set[str]] = defaultdict(set)
for path in (PROJECT / "tests").rglob("test_*.py"):
    FUNCTIONS[path.name] |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_tests_and_files_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text()
    for file, function in re.findall(r"(test_\w+\.py)::(\w+)", text):
        assert function in FUNCTIONS[file], f"{file} has no {function}"
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{target} does not exist"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_has_one_first_level_heading(document: Path) -> None:
    without_code = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(re.findall(r"^# ", without_code, re.MULTILINE)) == 1


DRAWN = '<div class="only-light"><svg></svg></div><div class="only-dark"><svg></svg></div>'


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<h1>A</h1><h1>B</h1>", "page.html has 2 first-level headings"),
        ("<p>A</p>", "page.html has 0 first-level headings"),
        ('<h1>A</h1><pre class="mermaid">flowchart</pre>', "page.html has 0 SVGs for 1 diagrams"),
        ('<h1>A</h1><script src="https://cdn.test/a.js"></script>', "loads https://cdn.test/a.js"),
        ('<h1>A</h1><script>import a from "https://cdn.test/a"</script>', "https://cdn.test/a"),
        ('<h1>A</h1><link rel="stylesheet" href="//fonts.test/a.css">', "loads //fonts.test/a.css"),
        ('<h1>A</h1><img src="http://images.test/a.png">', "loads http://images.test/a.png"),
        (
            "<h1>A</h1><style>@import url(https://fonts.test/a)</style>",
            "loads https://fonts.test/a",
        ),
        ('<h1>A</h1><p style="background: url(//fonts.test/a)">', "loads //fonts.test/a"),
    ],
)
def test_the_site_check_reports_each_defect(tmp_path: Path, body: str, complaint: str) -> None:
    (tmp_path / "page.html").write_text(body + ("" if "mermaid" in body else DRAWN))
    [found] = complaints(tmp_path, {"page": 1})
    assert complaint in found


def test_the_site_check_reads_style_sheets_and_scripts(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<h1>A</h1><a href="https://example.com">B</a><img src="a.png">'
    )
    (tmp_path / "good.css").write_text("a { background: url('data:image/svg+xml;utf8,//') }")
    (tmp_path / "good.js").write_text('// from https://example.com\nimport "./a.js";')
    assert list(complaints(tmp_path, {})) == []
    (tmp_path / "font.css").write_text("@font-face { src: url(https://fonts.test/a) }")
    (tmp_path / "load.js").write_text('await import("https://cdn.test/a.js")')
    assert list(complaints(tmp_path, {})) == [
        "font.css loads https://fonts.test/a",
        "load.js loads https://cdn.test/a.js",
    ]


def test_the_site_check_counts_the_diagrams_of_a_page() -> None:
    assert diagrams_of(PROJECT / "docs")["how-it-works"] == 3


@pytest.mark.parametrize("document", ["architecture.md", "data-model.md", "glossary.md"])
def test_the_modules_that_a_page_names_exist(document: str) -> None:
    text = (PROJECT / "docs" / document).read_text()
    for path in re.findall(r"`([\w/]+\.py)`", text):
        assert (PROJECT / path).exists() or (PROJECT / "chalicelib" / path).exists(), path


FOLDERS = (
    *("chalicelib", "gateway", "infra", "bench", "tests", "tools"),
    *(
        "auth",
        "store",
        "delivery",
        "fanout",
        "messaging",
        "protocol",
        "rest",
        "runtime",
        "websocket",
    ),
)
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w/]+)\.py\b")
STORED_BY = re.compile(r"`((?:store|fanout|websocket)/\w+)`")  # as the data model names modules


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_paths_of_modules_in_a_document_exist(document: Path) -> None:
    text = document.read_text()
    names = PATH.findall(text)
    if document.name == "data-model.md":
        names += STORED_BY.findall(text)
    for name in names:
        assert any((root / f"{name}.py").exists() for root in (PROJECT, PROJECT / "chalicelib")), (
            name
        )


def test_every_rule_of_the_standards_has_a_test_or_a_reason() -> None:
    text = (PROJECT / "docs" / "security.md").read_text()
    assert len(re.findall(r"test_\w+\.py::test_", text)) > 80
    for rule in [f"3.{number}" for number in range(1, 13)] + [
        f"10.{number}" for number in range(1, 9)
    ]:
        assert f"\n| {rule} " in text
    for line in text.splitlines():
        if line.startswith("| ") and line.endswith("| |"):
            assert len(line.split("|")[2].split()) >= 2, line


def test_the_table_of_settings_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run python docs/settings_table.py"


IN_CI_ALONE = (
    "make test",
    "make faults",
    "make fuzz",
    "make mutants",
    "make e2e",
    "make docs",
    "make sbom",
    "make bench",
)
NEWCOMER = "test_a_newcomer_gets_from_clone_to_a_deployed_websocket"
COMMANDS = {
    "make run": "test_the_url_and_the_command_that_run_prints_can_be_pasted",
    ".venv/bin/websockets": "test_the_websocket_client_receives_what_curl_sends",
    "curl": "test_the_websocket_client_receives_what_curl_sends",
    "make PYTHON=": "test_an_unfinished_environment_is_recreated_while_another_command_waits",
    "make lint": "make test",  # which runs it first
    "make demo": "test_demo_shows_who_received_the_message",
    "make token": "test_token_prints_a_token_and_nothing_else",
    "make deploy": "test_a_deployed_stage_is_healthy",  # in the emulator, by both methods
    "make destroy": "test_a_deployed_stage_is_healthy",  # its fixture destroys the stage
    "make resources": NEWCOMER,
    "chalice deploy": NEWCOMER,
    "chalice local": NEWCOMER,
    "chalice logs": NEWCOMER,
    "chalice invoke": NEWCOMER,
    "chalice url": NEWCOMER,
    "chalice delete": NEWCOMER,
    "chalice package": "test_the_template_passes_cfn_lint",
    "python -m infra token": NEWCOMER,
    "make package": "test_the_template_passes_cfn_lint",
    "python3 -c": "test_the_command_in_the_configuration_page_makes_master_keys",
    "python docs/settings_table.py": "test_the_table_of_settings_is_up_to_date",
    ".venv/bin/chalice local": "test_chalice_local_without_run_uses_tables_of_its_own",
    ".venv/bin/python -m bench": "make bench",  # which runs every benchmark
    "make lock": "test_make_lock_compiles_each_file_with_hashes_and_the_development_file_first",
    "make simulate": "test_simulate_reproduces_the_committed_results_and_plots",
    "make coverage": "test_too_little_coverage_fails_and_names_the_modules",
    "make audit": "test_an_audit_names_vulnerable_packages_and_fails",
    **{command: command for command in IN_CI_ALONE},
}
"""The beginning of each command in the documents, and the test or line of .ci/run that runs it."""
IN_CI = (PROJECT / ".ci" / "run").read_text()


def commands(document: Path) -> list[str]:
    """Return the commands in a document: in its code blocks, one for each line, and in its text."""
    text = document.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    joined = re.sub(r"\\\n\s*|(?<=,)\n\s+", " ", "".join(blocks))
    within = re.findall(r"`((?:chalice|make|python3?|\.venv/bin/\w+) [^`]+)`", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")] + within


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_document_is_run_by_a_test_or_in_ci(document: Path) -> None:
    functions = set().union(*FUNCTIONS.values())
    for command in commands(document):
        [begin] = [begin for begin in COMMANDS if command.startswith(begin)]
        by = COMMANDS[begin]
        assert by in functions or re.search(rf"^{by}( |$)", IN_CI, re.MULTILINE)
