"""The Python that packages, which is the Python that the functions run on.

Chalice deploys for the interpreter that it runs on. AWS closes python3.11: a newer one that is on
the machine takes over, before anything is made.
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
    """The `chalice` command of an interpreter's environment."""
    return str(Path(python).with_name("chalice"))


def run_again(python: str, *arguments: str) -> NoReturn:
    """Replace this process by `python` with arguments."""
    sys.stdout.flush()
    os.execv(python, [python, *arguments])  # noqa: S606 - the same command, once more


def use_newer_python(*module: str) -> None:
    """Go on with this command under a newer Python, where this one's runtime is closed.

    `module` says what runs, such as `-m infra`; by default it is Chalice. Returns where this Python
    is the one to package with: because it is new enough, because DEPLOY_PYTHON names it, or because
    the machine has no newer one; stderr then says what AWS will do.
    """
    wanted = os.environ.get(OVERRIDE)
    if wanted is not None and Path(wanted).resolve() == Path(sys.executable).resolve():
        return
    if wanted is None and sys.version_info[:2] > CLOSED_UP_TO:
        return
    newer = wanted or _newer_python()
    if newer is None:
        # The commands that this one runs need not say it again.
        os.environ[OVERRIDE] = sys.executable
        told = f"{CLOSING}\nThis machine has no newer Python: going on with this one."
        print(told, file=sys.stderr)
        return
    if wanted is None:
        print(f"{CLOSING}\nPackaging with {newer} instead.", file=sys.stderr)
    elif not _runs(wanted):
        raise SystemExit(f"{OVERRIDE} holds {wanted!r}; allowed: the path of a Python")
    python = str(_environment(newer))
    os.environ[OVERRIDE] = python
    run_again(python, *(module or [chalice(python)]), *sys.argv[1:])


def _newer_python() -> str | None:
    """The newest supported interpreter on the PATH; one that is a mere shim doesn't count."""
    paths = (shutil.which(name) for name in SUPPORTED)
    return next((path for path in paths if path and _runs(path)), None)


def _runs(python: str) -> bool:
    try:
        return not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode
    except OSError:
        return False


def _environment(python: str) -> Path:
    """The interpreter of an environment with the pinned packages, made at its first use.
    Raises SystemExit where it can't be made."""
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    folder = Path(".venv") / f"deploy-{version}"
    files = ["requirements-dev.txt", "requirements-dev.in", "requirements.txt"]
    ended = subprocess.run(
        [python, "tools/set_up.py", "--with-this-python", folder, *files], cwd=PROJECT, check=False
    )
    if ended.returncode:
        raise SystemExit(ended.returncode)
    return PROJECT / folder / "bin" / "python"
