"""Writes the table of settings in `configuration.md` from the class `Settings`.

Run `python docs/settings_table.py` after a change of a setting; a test fails until then.
"""

import re
import sys
from dataclasses import fields
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "configuration.md"
MARKED = re.compile(r"(?<=<!-- settings -->\n).*?(?=\n<!-- end of settings -->)", re.DOTALL)


def table() -> str:
    """Return the table, with a row for each variable."""
    sys.path.insert(0, str(PROJECT))
    from chalicelib.settings import Settings, variable_of

    rows = ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
    for setting in fields(Settings):
        cells = (
            f"`{variable_of(setting.name)}`",
            _code(setting.default),
            setting.metadata["parser"].allowed,
            setting.metadata["meaning"],
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _code(default: object) -> str:
    if default in (None, ()):
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def page(text: str) -> str:
    """Return the text of the page with an up-to-date table."""
    return MARKED.sub(lambda _: table(), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
