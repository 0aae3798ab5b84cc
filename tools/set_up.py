"""Set up a virtual environment. `make` runs this before the commands that need one.

    python tools/set_up.py [--with-this-python] FOLDER REQUIREMENTS [FILE…]

Install REQUIREMENTS, a file with hashes, into FOLDER, unless the environment is newer than all the
files. Each FILE is an input that REQUIREMENTS was compiled from, or another environment's `.ready`.
One set-up runs at a time in a checkout; others wait. An environment that this script created is
deleted and created again; one that the user created is kept, and installed into.

All output goes to standard error. This file needs Python 3.8 or later, since it also reports a
Python that is too old for Herald, and only the standard library.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # before the other imports, since Ctrl-C can come during them
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import fcntl
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

NEEDED = (3, 11)
LOCK = Path(".herald/set-up.lock")
LOG = Path(".herald/set-up.log")
UV = Path("requirements/uv.txt")
MAIN_UV = Path(".venv/bin/uv")  # other environments use this one
READY = ".ready"
HALF_MADE = ".half-made"
MADE, KEPT = "made\n", "kept\n"  # the contents of READY
EVERY_SECONDS = 5.0  # between two lines of progress
TAIL = 15  # lines of a failed command that are shown
DESCRIBE = "import sys; print(*sys.version_info[:3], sys.base_prefix)"
REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?\s*(==\s*[^\s;#]+)?")
FOREIGN = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__"}


class Interrupted(BaseException):
    """Raised on Ctrl-C or another signal to stop. Holds the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, _: FrameType | None) -> None:
    on_signals(signal.SIG_IGN)  # ignore further signals
    raise Interrupted(number)


def on_signals(handler: Any) -> None:
    """Set the handler of SIGINT, SIGTERM and SIGHUP."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


class SetUpError(Exception):
    """The set-up failed. The text has the reason and the remedy."""


def main(arguments: Sequence[str]) -> int:
    """Set up the environment that `arguments` name. Return the exit status."""
    parser = argparse.ArgumentParser(prog="tools/set_up.py")
    parser.add_argument("--with-this-python", action="store_true")
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    try:
        on_signals(_interrupt)
        check_version(sys.version_info[:3])
        with locked(LOCK) as lock:
            if not is_ready(given.folder, given.files, with_this_python=given.with_this_python):
                set_up(given.folder, given.files, lock)
    except SetUpError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{given.folder} can't be set up: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print("Interrupted. The next make starts the set-up again.", file=sys.stderr)
        return 128 + interrupted.number
    finally:
        on_signals(signal.SIG_IGN)
    return 0


def check_version(version: Sequence[int]) -> None:
    """Raise SetUpError if Python is too old for Herald."""
    if tuple(version) < NEEDED:
        raise SetUpError(
            f"{sys.executable} is Python {_dotted(version)}, and Herald needs Python"
            f" {_dotted(NEEDED)} or later.\n"
            "Install one, or name one that is installed: make PYTHON=python3.12 run"
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock that only one set-up of this checkout can hold. Yields its file descriptor.

    The kernel releases the lock when the last process with the descriptor ends.
    """
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as file:
        progress = None
        while not _lock(file.fileno()):
            if progress is None:
                file.seek(0)
                holder = file.read().strip()
                print(
                    "Another shell is setting up this checkout"
                    f"{holder and f' (process {holder})'}. Waiting for it.",
                    file=sys.stderr,
                )
                progress = Progress()
            progress.show("waiting for the other set-up")
            time.sleep(0.1)
        if progress is not None:
            progress.end()
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()
        file.truncate(0)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_ready(folder: Path, files: Sequence[Path], *, with_this_python: bool = False) -> bool:
    """Return whether the environment is complete and newer than `files`.

    With `with_this_python`, it must also have been created by the running Python.
    """
    ready = folder / READY
    if not ready.exists():
        return False
    made = ready.stat().st_mtime_ns
    if any(file.stat().st_mtime_ns > made for file in files):
        return False
    described = describe(folder)
    return described is not None and (
        not with_this_python or described == (sys.version_info[:3], sys.base_prefix)
    )


def describe(folder: Path) -> tuple[tuple[int, ...], str] | None:
    """Return the version and the prefix of the environment's Python; None if none runs."""
    python = folder / "bin" / "python"
    try:
        said = subprocess.run(
            [str(python), "-I", "-c", DESCRIBE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        ).stdout.rstrip("\n")
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor, micro, where = said.split(" ", 3)
    return (int(major), int(minor), int(micro)), where


def set_up(folder: Path, files: Sequence[Path], lock: int) -> None:
    """Create the environment, or keep one that the user created, and install into it."""
    ready = folder / READY
    kept = is_somebodys(folder)
    if not kept and folder.exists():
        shutil.rmtree(folder)
    version = kept_version(folder) if kept else sys.version_info[:3]
    print(
        f"Setting up {folder} with Python {_dotted(version)}, once."
        f"{' It was not created by make, so it is kept.' if kept else ''}",
        file=sys.stderr,
    )
    progress = Progress()
    LOG.write_text("")
    if kept:
        with contextlib.suppress(FileNotFoundError):
            ready.unlink()
        complete(folder, progress, lock)
    else:
        make(folder, progress, lock)
    locked, *sources = files
    install(folder, ["--require-hashes", "-r", str(locked)], str(locked), progress, lock)
    added = unlocked(locked, [file for file in sources if file.name != READY])
    if added:
        names = ", ".join(added)
        print(f"{locked} has no hashes for {names}. Installing without hashes.", file=sys.stderr)
        print("Run `make lock` to add them.", file=sys.stderr)
        install(folder, added, names, progress, lock)
    ready.write_text(KEPT if kept else MADE)
    with contextlib.suppress(FileNotFoundError):
        (folder / HALF_MADE).unlink()
    progress.end(f"{folder} is set up.")


def is_somebodys(folder: Path) -> bool:
    """Return whether the user created the folder, so that it must not be deleted."""
    ready = folder / READY
    if folder.is_symlink():
        return True
    if ready.exists():
        return ready.read_text() == KEPT
    return folder.exists() and not (folder / HALF_MADE).exists() and any(folder.iterdir())


def kept_version(folder: Path) -> tuple[int, ...]:
    """Return the Python version of a user's environment. Raise SetUpError if it is unusable."""
    described = describe(folder)
    if described is None:
        found = "has no working Python"
    elif described[0] < NEEDED:
        found = f"has Python {_dotted(described[0])}"
    else:
        return described[0]
    raise SetUpError(
        f"{folder} {found}, and Herald needs Python {_dotted(NEEDED)} or later.\n"
        f"It was not created by make, so it is left unchanged. Move it away, and make creates a new"
        f" one: mv {folder} {folder}.old"
    )


def make(folder: Path, progress: Progress, lock: int) -> None:
    """Create an empty environment."""
    folder.mkdir(parents=True)
    (folder / HALF_MADE).touch()
    # The base Python, since this one may run in an environment, even in the one to be replaced.
    python = getattr(sys, "_base_executable", None) or sys.executable
    run([python, "-m", "venv", str(folder)], "creating the environment", progress, lock)


def complete(folder: Path, progress: Progress, lock: int) -> None:
    """Install pip if the environment lacks it, as those of `uv venv` do."""
    python = str(folder / "bin" / "python")
    if subprocess.run([python, "-I", "-c", "import pip"], stderr=subprocess.DEVNULL).returncode:
        run([python, "-I", "-m", "ensurepip"], "installing pip", progress, lock)


def unlocked(locked: Path, sources: Sequence[Path]) -> list[str]:
    """Return the requirements in `sources`, as they are written there, that `locked` lacks."""
    held = set()
    for name, version, _ in requirements(locked):
        held |= {name, name + version}
    return [
        text
        for source in sources
        for name, version, text in requirements(source)
        if name + version not in held or "@" in text
    ]


def requirements(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each requirement's normalized name, `==version` or nothing, and its whole text."""
    for line in file.read_text(encoding="utf-8").splitlines():
        found = REQUIREMENT.match(line)
        if found:
            name = re.sub(r"[-_.]+", "-", found[1]).lower()
            text = re.split(r"\s#", line, maxsplit=1)[0].strip()
            yield name, (found[2] or "").replace(" ", ""), text


def install(folder: Path, what: Sequence[str], name: str, progress: Progress, lock: int) -> None:
    """Install with uv, or with pip if uv fails or pip has another index configured.

    uv does not read pip's configuration. No module is compiled, since most are never imported.
    """
    python = str(folder / "bin" / "python")
    pip = [python, "-I", "-m", "pip"]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    by_pip = [*pip, "install", *quiet, "--no-compile"]
    doing = f"installing {name}"
    if not has_own_index(pip):
        try:
            uv = MAIN_UV if MAIN_UV.exists() else folder / "bin" / "uv"
            if not uv.exists():
                hashed = ["--require-hashes", "-r", str(UV)]
                run([*by_pip, *hashed], "installing uv", progress, lock)
            by_uv = [str(uv), "pip", "install", "--python", python, "--system-certs"]
            run([*by_uv, *what], doing, progress, lock)
            return
        except SetUpError:
            doing += " with pip, since uv failed"
    run([*by_pip, *what], doing, progress, lock)


def has_own_index(pip: Sequence[str]) -> bool:
    """Return whether pip is configured to use another index than PyPI, or no index."""
    listed = subprocess.run(
        [*pip, "config", "list"], stdout=subprocess.PIPE, text=True, check=False
    )
    keys = {line.partition("=")[0].rpartition(".")[2] for line in listed.stdout.splitlines()}
    return not keys.isdisjoint({"index-url", "no-index"})


def run(command: Sequence[str], doing: str, progress: Progress, lock: int) -> None:
    """Run a command and show its progress. Raise SetUpError with its last lines if it fails.

    The command inherits the lock: if this process is killed, the lock is held until the command
    ends.
    """
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        pass_fds=[lock],
        start_new_session=True,  # Ctrl-C reaches only this process, which stops the command
    )
    assert process.stdout is not None  # noqa: S101
    try:
        said = _follow(process.stdout.fileno(), doing, progress)
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        process.stdout.close()
    if status:
        progress.end()
        tail = "\n".join(f"  {line}" for line in said[-TAIL:])
        raise SetUpError(f"{doing} failed. The whole output is in {LOG}; its end:\n{tail}")


def _follow(pipe: int, doing: str, progress: Progress) -> list[str]:
    """Read a pipe to its end, and append the output to LOG. Return its lines."""
    lines = [""]
    with LOG.open("a", encoding="utf-8") as log:
        while True:
            progress.show(next(filter(None, map(step, reversed(lines))), doing))
            if not select.select([pipe], [], [], 0.2)[0]:
                continue
            chunk = os.read(pipe, 65536)
            if not chunk:
                return [line for line in lines if line]
            text = chunk.decode("utf-8", "replace")
            log.write(text)
            first, *others = text.split("\n")
            lines[-1] += first
            lines += others


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a command and its child processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.wait()


def step(line: str) -> str | None:
    """Return pip's current step according to a line of its output; None if it names no step."""
    words = line.split()
    if len(words) > 1 and words[0] in ("Collecting", "Downloading"):
        return f"{words[0].lower()} {words[1]}"
    if line.startswith("Installing collected packages:"):
        return f"installing {line.count(',') + 1} packages"
    return None


class Progress:
    """Shows the current step and the seconds so far.

    On a terminal this is one line that changes, and nothing in the first second; elsewhere it is a
    line every few seconds.
    """

    def __init__(self) -> None:
        self._began = self._shown = time.monotonic()
        self._changes = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, doing: str) -> None:
        """Show the step `doing`, if it is time for an update."""
        now = time.monotonic()
        since = now - self._shown
        line = f"{now - self._began:3.0f} s: {doing}"
        if self._changes and now - self._began >= 1:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]}\x1b[K", end="", file=sys.stderr, flush=True)
        elif not self._changes and since >= EVERY_SECONDS:
            print(line, file=sys.stderr, flush=True)
            self._shown = now

    def end(self, line: str = "") -> None:
        """Erase the changing line. Print `line` with the seconds if it took long."""
        seconds = time.monotonic() - self._began
        if self._changes:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if line and seconds >= EVERY_SECONDS:
            print(f"{seconds:3.0f} s: {line}", file=sys.stderr, flush=True)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
