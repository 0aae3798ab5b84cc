"""Chalice's reloader, told what belongs to the project."""

from collections.abc import Callable
from pathlib import Path

from chalice.cli.filewatch.stat import StatFileWatcher

from gateway.configuration import PROJECT

WATCHED = [PROJECT / name for name in ("app.py", "chalicelib", "vendor", ".chalice/config.json")]
"""What Chalice packages, and what configures it."""


def watch_the_project(elsewhere: Callable[[], object]) -> None:
    """Restart the worker of `chalice local` when a file of the app changes, or what `elsewhere`
    returns.

    By itself Chalice looks at every file in the folder, once a second: at `.venv`, at a log that a
    user writes there, and at what Python and Herald write while they start. Each would restart it.
    """
    before = (_changes(), elsewhere())

    def look(watcher: StatFileWatcher, folder: str, restart: Callable[[], None]) -> None:
        if (_changes(), elsewhere()) != before:
            restart()

    StatFileWatcher._single_pass_poll = look  # type: ignore[assignment, method-assign]


def _changes() -> dict[Path, int]:
    """When each file of the app was last changed."""
    files = [path for path in WATCHED if path.is_file()]
    for path in WATCHED:
        files += [file for file in path.rglob("*") if "__pycache__" not in file.parts]
    return {file: _changed(file) for file in files}


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # it was removed meanwhile, or is a link to nowhere
        return 0
