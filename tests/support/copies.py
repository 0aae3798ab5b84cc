"""Copies of the project, apart from the developer's own running commands."""

import shutil
from pathlib import Path

from gateway.configuration import PROJECT


def copy_project(to: Path) -> Path:
    """Copy the files that the commands need to the new folder `to`, and return it."""
    to.mkdir()
    shutil.copy(PROJECT / "app.py", to)
    for folder in (".chalice", "chalicelib", "clients", "console", "gateway", "infra"):
        shutil.copytree(PROJECT / folder, to / folder)
    return to
