"""The emulated AWS of a `chalice local` that runs without `make run`."""

import fcntl
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from gateway.configuration import PROJECT
from gateway.machine import private_files
from gateway.registry import REGISTRY, read_locked

PACKAGES = ("boto3", "ministack", "starlette", "uvicorn")
"""The modules that the emulator needs beyond the app's own packages."""
START_SECONDS = 60.0
POLL_SECONDS = 0.02


class EmulatorError(Exception):
    """The emulator can't be started. The text says why, and what to do."""


def own_emulator(owner: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that lead to the emulator of the process `owner`.

    The first call starts it; it ends with its owner. Raises EmulatorError.
    """
    path = REGISTRY.folder / f"chalice-local-{owner}.json"
    if read_locked(path) is None:
        _require_packages()
    with REGISTRY.locked(), open(path, "a", opener=private_files.opener) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # a keeper is running
        else:
            file.truncate(0)
            _start_keeper(owner, path, file.fileno(), environ)
    return _wait_for_variables(path)


def _require_packages() -> None:
    """Raise EmulatorError if a package is missing, as where only the app's are installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise EmulatorError(
            f"`chalice local` needs {' and '.join(missing)} for its own DynamoDB:"
            f" {sys.executable} -m pip install -r requirements-dev.txt"
        )


def _start_keeper(owner: int, path: Path, descriptor: int, environ: Mapping[str, str]) -> None:
    """Start a keeper, which inherits the lock of the file."""
    subprocess.Popen(  # noqa: S603
        [
            sys.executable,
            "-m",
            "gateway.chalice_local.keeper",
            str(owner),
            str(path),
            str(descriptor),
        ],
        cwd=PROJECT,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,  # Ctrl-C must reach only the owner
    )


def _wait_for_variables(path: Path) -> dict[str, str]:
    """Return what the keeper writes once the emulator runs. Raises EmulatorError."""
    end = time.monotonic() + START_SECONDS
    while (text := read_locked(path)) is not None and time.monotonic() < end:
        if text.endswith("\n"):
            variables: dict[str, str] = json.loads(text)
            return variables
        time.sleep(POLL_SECONDS)
    raise EmulatorError("The emulated DynamoDB did not start; see its output above")
