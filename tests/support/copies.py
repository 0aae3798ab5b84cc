"""Copies of the project, in which commands don't meet those of the developer."""

import shutil
from pathlib import Path

from gateway.configuration import PROJECT


def copy_project(to: Path) -> Path:
    """Copy what the commands need to the new folder `to`, and return it."""
    to.mkdir()
    shutil.copy(PROJECT / "app.py", to)
    for folder in (".chalice", "chalicelib", "clients", "console", "gateway", "infra"):
        shutil.copytree(PROJECT / folder, to / folder)
    return to
