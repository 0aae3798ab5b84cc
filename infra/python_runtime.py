"""Chooses the Python that packages, which is also the Python that the functions run on.

Chalice deploys to the runtime of the interpreter that it runs on. AWS is closing python3.11, so a
newer interpreter on the machine takes over before anything is created.
https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtimes.html
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from infra.stage import PROJECT

CLOSED_UP_TO = (3, 11)
SUPPORTED = ("python3.13", "python3.12")
OVERRIDE = "DEPLOY_PYTHON"
CLOSING = (
    "AWS has announced the end of python3.11 on Lambda: no new functions from 31 July 2026,"
    " no updates of functions from 31 August 2026."
)


def chalice(python: str = sys.executable) -> str:
    """Return the path of the `chalice` command in an interpreter's environment."""
    return str(Path(python).with_name("chalice"))


def run_again(python: str, *arguments: str) -> NoReturn:
    """Replace this process by an interpreter with these arguments."""
    sys.stdout.flush()
    os.execv(python, [python, *arguments])  # noqa: S606 - the same command, once more


def use_newer_python(*module: str) -> None:
    """Run this command again with a newer Python, if AWS closes the runtime of this one.

    Returns if this Python is the one to package with: it is new enough, DEPLOY_PYTHON names it, or
    the machine has no newer one (then stderr says what AWS will do).

    Args:
        module: How Python starts the command, such as `-m infra`; by default it is Chalice's.

    Raises:
        SystemExit: If DEPLOY_PYTHON isn't a Python that works.
    """
    wanted = os.environ.get(OVERRIDE)
    if wanted is not None and Path(wanted).resolve() == Path(sys.executable).resolve():
        return
    if wanted is None and sys.version_info[:2] > CLOSED_UP_TO:
        return
    newer = wanted or _newer_python()
    if newer is None:
        os.environ[OVERRIDE] = sys.executable  # the commands that this one runs needn't repeat it
        print(f"{CLOSING}\nThis machine has no newer Python; using this one.", file=sys.stderr)
        return
    if wanted is None:
        print(f"{CLOSING}\nPackaging with {newer} instead.", file=sys.stderr)
    elif not _works(wanted):
        raise SystemExit(f"{OVERRIDE} holds {wanted!r}; allowed: the path of a Python")
    python = str(_environment(newer))
    os.environ[OVERRIDE] = python
    run_again(python, *(module or [chalice(python)]), *sys.argv[1:])


def _newer_python() -> str | None:
    """Return the newest supported interpreter on the PATH that works.

    A version manager's shim doesn't work when that version isn't installed.
    """
    paths = (shutil.which(name) for name in SUPPORTED)
    return next((path for path in paths if path and _works(path)), None)


def _works(python: str) -> bool:
    try:
        return not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode
    except OSError:
        return False


def _environment(python: str) -> Path:
    """Return the interpreter of an environment with the pinned packages, created at first use.

    Raises SystemExit if it can't be created; the set-up has said why.
    """
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    folder = Path(".venv") / f"deploy-{version}"
    files = ["requirements-dev.txt", "requirements-dev.in", "requirements.txt"]
    set_up = subprocess.run(
        [python, "tools/set_up.py", "--with-this-python", folder, *files], cwd=PROJECT, check=False
    )
    if set_up.returncode:
        raise SystemExit(set_up.returncode)
    return PROJECT / folder / "bin" / "python"
