"""Copies of the project, so that no command meets another one of the person who tests."""

import shutil
from pathlib import Path

from gateway.configuration import PROJECT


def copy_project(to: Path) -> Path:
    """Copy what the commands need to a new folder, and return it."""
    to.mkdir()
    shutil.copy(PROJECT / "app.py", to)
    for folder in (".chalice", "chalicelib", "clients", "console", "gateway", "infra"):
        shutil.copytree(PROJECT / folder, to / folder)
    return to
