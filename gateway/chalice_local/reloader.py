"""Make Chalice's reloader watch the app's files, and nothing else."""

from collections.abc import Callable
from pathlib import Path

from chalice.cli.filewatch.stat import StatFileWatcher

from gateway.configuration import PROJECT

WATCHED = [PROJECT / name for name in ("app.py", "chalicelib", "vendor", ".chalice/config.json")]
"""The files that Chalice packages, and its configuration."""


def watch_project(other_state: Callable[[], object]) -> None:
    """Restart the worker of `chalice local` when a file of the app or `other_state()` changes.

    By default, Chalice looks at every file in the folder once a second: at `.venv`, at logs that
    a user writes there, and at the files that Python and Herald write while they start. Each of
    these would restart the worker.
    """
    before = (_modification_times(), other_state())

    def look(watcher: StatFileWatcher, folder: str, restart: Callable[[], None]) -> None:
        if (_modification_times(), other_state()) != before:
            restart()

    StatFileWatcher._single_pass_poll = look  # type: ignore[assignment, method-assign]


def _modification_times() -> dict[Path, int]:
    files = [path for path in WATCHED if path.is_file()]
    for path in WATCHED:
        files += [file for file in path.rglob("*") if "__pycache__" not in file.parts]
    return {file: _modified_ns(file) for file in files}


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed meanwhile, or a broken link
        return 0
