"""Chalice's reloader, told what belongs to the project."""

import os
from collections.abc import Callable
from pathlib import Path

from chalice.cli.filewatch.stat import StatFileWatcher

from gateway.configuration import PROJECT

CONFIGURATION = PROJECT / ".chalice" / "config.json"
NOT_WATCHED = {"__pycache__", "mutants", "node_modules"}


def watch_the_project(elsewhere: Callable[[], object]) -> None:
    """Restart the worker of `chalice local` when a file of the project changes, or what
    `elsewhere` returns.

    By itself Chalice looks at every file in the folder, once a second: at `.venv` as well, and at
    what Python and Herald write while they start, so that it would restart the app each first time.
    """
    before = (_changes(), elsewhere())

    def look(watcher: StatFileWatcher, folder: str, restart: Callable[[], None]) -> None:
        if (_changes(), elsewhere()) != before:
            restart()

    StatFileWatcher._single_pass_poll = look  # type: ignore[assignment, method-assign]


def _changes() -> dict[str, int]:
    """When each file of the project was last changed."""
    found = {}
    for folder, folders, files in os.walk(PROJECT):
        folders[:] = [name for name in folders if name[0] != "." and name not in NOT_WATCHED]
        for path in [Path(folder, name) for name in files if name[0] != "."]:
            found[str(path)] = _changed(path)
    return {**found, str(CONFIGURATION): _changed(CONFIGURATION)}


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # it was removed meanwhile, or is a link to nowhere
        return 0
