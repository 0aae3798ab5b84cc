"""The table of `configuration.md`, from the settings object.

`python docs/settings_table.py` writes it, and a test says when it is not up to date.
"""

import re
import sys
from dataclasses import fields
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "configuration.md"
MARKED = re.compile(r"(?<=<!-- settings -->\n).*?(?=\n<!-- end of settings -->)", re.DOTALL)


def table() -> str:
    """A row for each variable."""
    sys.path.insert(0, str(PROJECT))
    from chalicelib.settings import Settings

    rows = ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
    for setting in fields(Settings):
        about = setting.metadata
        cells = (f"`{about['variable']}`", _shown(setting.default), about["allowed"])
        rows.append(f"| {' | '.join(cells)} | {about['meaning']} |")
    return "\n".join(rows)


def _shown(default: object) -> str:
    if default in (None, ()):
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def page(text: str) -> str:
    """The page with the table as it should be."""
    return MARKED.sub(lambda _: table(), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
