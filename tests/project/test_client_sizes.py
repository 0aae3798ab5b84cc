"""The clients' sizes: small enough to read before copying. Comments are not counted."""

import ast
import re
from pathlib import Path

CLIENTS = Path(__file__).parents[2] / "clients"
LINES = 300


def test_the_python_client_has_few_lines_of_code() -> None:
    text = (CLIENTS / "python" / "herald_client.py").read_text()
    documentation = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    lines = [line for at, line in enumerate(text.splitlines(), 1) if at not in documentation]
    assert len(re.findall(r"^ *[^ #\n]", "\n".join(lines), re.MULTILINE)) < LINES


def test_the_javascript_client_has_few_lines_of_code() -> None:
    text = (CLIENTS / "js" / "herald.js").read_text()
    lines = re.sub(r"/\*\*.*?\*/", "", text, flags=re.DOTALL)
    assert len(re.findall(r"^ *(?!//)[^ \n]", lines, re.MULTILINE)) < LINES
