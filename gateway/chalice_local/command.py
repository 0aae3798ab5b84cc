"""`chalice local`: leads the app that Chalice serves to local tables.

Beside a running `make run` these are its tables, else those of an emulator of its own. Nothing that
the stage's configuration says of AWS, and nothing of the user's own account, counts here.
"""

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gateway.aws.variables import QUEUE_URL, without_proxy
from gateway.chalice_local.reloader import watch_the_project
from gateway.configuration import (
    LOCAL_STAGE,
    PROJECT,
    SECRET,
    ConfigurationError,
    chalice_configuration,
    local_environment,
    stage_environment,
)
from gateway.first_message import curl
from gateway.machine import private_files
from gateway.machine.processes import birth, is_alive, wait_for_end
from gateway.machine.registry import FOLDER, Entry, alone, make_folder, newest, private, read_locked
from gateway.tokens import token
from infra.stage import TABLES

CLI_MODE = "AWS_CHALICE_CLI_MODE"
WORKER = "CHALICE_WORKER"
STAGE = "HERALD_STAGE"
OF_TOKENS = (SECRET, "HERALD_JWT_ISSUER", "HERALD_JWT_AUDIENCE")
RESOURCE = re.compile(r"HERALD_\w+_(ARN|BUS|ENDPOINT|TABLE|URL)")
EMULATOR_PACKAGES = ("boto3", "ministack", "uvicorn")
START_SECONDS = 60.0
NEXT_PORTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What `chalice local` was told."""

    host: str
    port: int
    stage: str

    @property
    def http(self) -> str:
        """Where this machine reaches it."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"  # noqa: S104


class CannotServe(Exception):
    """The text says why, and names the cure."""


def prepare(environ: MutableMapping[str, str], arguments: Arguments) -> None:
    """Have `environ`, which the app is about to read, lead to local tables.

    Where that can't be, the command ends with a line that says why.
    """
    reloaded = WORKER in environ
    owner = os.getppid() if reloaded else os.getpid()
    try:
        if reloaded:
            if not _is_ours(owner):
                os._exit(0)
            threading.Thread(target=_end_with, args=[owner], daemon=True).start()
            watch_the_project(newest)
        _refuse_a_taken_port(arguments)
        gateway = _lead(environ, arguments.stage, owner)
        _welcome(environ, arguments, gateway, owner if reloaded else None)
    except (CannotServe, ConfigurationError) as error:
        stop(str(error))


def stop(line: str) -> NoReturn:
    """End `chalice local` with a line.

    Chalice imports the app in a thread of a process that its parent waits for: there, an exception
    would end neither, and the parent takes each end of its child for a success.
    """
    if threading.current_thread() is threading.main_thread():
        raise SystemExit(line)
    print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(ProcessLookupError):
        os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


def _is_ours(parent: int) -> bool:
    """Whether it has started this process. One that adopts an orphan has a group of its own."""
    try:
        return os.getpgid(parent) == os.getpgrp()
    except OSError:  # it has ended, or belongs to another user
        return False


def _end_with(owner: int) -> None:
    """End this process when its parent is gone, which ends its child on Ctrl-C alone."""
    wait_for_end(owner)
    _told(owner).unlink(missing_ok=True)
    os._exit(0)


def _refuse_a_taken_port(arguments: Arguments) -> None:
    """Raise CannotServe, which names a free one."""
    port = arguments.port
    if _is_free(arguments.host, port):
        return
    gateway = newest(port)
    holder = "another program" if gateway is None else "`make run` of this checkout"
    free = range(port + 1, min(port + NEXT_PORTS, 65535) + 1)
    other = next((one for one in free if _is_free(arguments.host, one)), port + 1)
    raise CannotServe(f"Port {port} is taken by {holder}; try: chalice local --port {other}")


def _is_free(host: str, port: int) -> bool:
    """Whether no program listens there; what else is wrong with an address, Chalice says."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def _lead(environ: MutableMapping[str, str], stage: str, owner: int) -> Entry | None:
    """Lead `environ` to a running gateway, which is returned, or to AWS of its own."""
    _forget_the_stage(environ, stage)
    queue = environ.pop(QUEUE_URL, None)
    gateway = newest()
    if gateway is None:
        environ.update(_own_aws(owner, environ))
    else:
        for table in TABLES:
            environ.pop(table, None)
        environ.update(gateway.variables)
    if queue == "":  # emptied: everything is delivered at once
        environ[QUEUE_URL] = ""
    environ.update(without_proxy(environ))
    return gateway


def _forget_the_stage(environ: MutableMapping[str, str], stage: str) -> None:
    """Remove what leads to the stage's resources, or to an account of the user's.

    Its limits stay. Tokens are those that `make token` makes. Raises ConfigurationError.
    """
    configured = stage_environment(chalice_configuration(), stage)
    typed = _typed(environ, configured)
    local = local_environment(typed)
    for name in list(environ):
        of_the_stage = name in configured and RESOURCE.fullmatch(name)
        if of_the_stage or (name.startswith("AWS_") and name != CLI_MODE):
            del environ[name]
    for name in OF_TOKENS:
        environ.pop(name, None)
        if name in local:
            environ[name] = local[name]
    environ[STAGE] = typed.get(STAGE) or LOCAL_STAGE


def _typed(environ: Mapping[str, str], configured: Mapping[str, str]) -> dict[str, str]:
    """Return the shell's variables, without those of the configuration.

    Chalice has put these in the place of the shell's. The kernel still knows the shell's, where
    it shows them.
    """
    typed = {name: value for name, value in environ.items() if name not in configured}
    try:
        text = Path("/proc/self/environ").read_text(errors="surrogateescape")
    except OSError:
        return typed
    at_start = dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
    return {**typed, **{name: at_start[name] for name in at_start.keys() & configured.keys()}}


def _own_aws(owner: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what leads to the emulator that lives as long as `owner`; it is started once.

    Raises CannotServe.
    """
    path = FOLDER / f"chalice-local-{owner}.json"
    if read_locked(path) is None:
        _require_the_emulator()
    with alone(), open(path, "a", opener=private) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # its keeper is there
        else:
            file.truncate(0)
            _start_keeper(owner, path, file.fileno(), environ)
    end = time.monotonic() + START_SECONDS
    while (text := read_locked(path)) is not None and time.monotonic() < end:
        if text.endswith("\n"):
            variables: dict[str, str] = json.loads(text)
            return variables
        time.sleep(0.02)
    raise CannotServe("The emulated DynamoDB did not start; what it said is above")


def _require_the_emulator() -> None:
    """Raise CannotServe where a package is missing that only development needs."""
    missing = [name for name in EMULATOR_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CannotServe(
            f"`chalice local` needs {' and '.join(missing)} for its own DynamoDB:"
            f" {sys.executable} -m pip install -r requirements-dev.txt"
        )


def _start_keeper(owner: int, path: Path, descriptor: int, environ: Mapping[str, str]) -> None:
    """Start a keeper, which has the file's lock from now on."""
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
        start_new_session=True,  # Ctrl-C is for the owner
    )


def _welcome(
    environ: Mapping[str, str], arguments: Arguments, gateway: Entry | None, owner: int | None
) -> None:
    """Print the URL, the tables and the first steps: once for each owner, and when they change."""
    tables = (
        "its own, which end with it"
        if gateway is None
        else f"those of `make run` on port {gateway.port}, whose sockets its messages reach"
    )
    if owner is not None and not _is_news(owner, tables):
        return
    try:
        alice = token(environ, "alice")
        first_steps = f"""A token for alice, for a day (make token USER=bob makes another):

  {alice}

Send a message:

{curl(arguments.http, alice)}"""
    except ConfigurationError:
        first_steps = "Tokens come from your identity provider: HERALD_JWT_SECRET is empty.\n"
    print(
        f"""
Herald's REST API, served by Chalice. WebSockets are `make run`'s.

  REST    {arguments.http}
  Tables  {tables}

{first_steps}""",
        flush=True,
    )


def _is_news(owner: int, tables: str) -> bool:
    """Whether the owner's terminal has not been told of these tables, as it is from now on."""
    make_folder()
    for other in FOLDER.glob(_told("*").name):
        if not is_alive(int(other.stem.rpartition("-")[2])):
            other.unlink(missing_ok=True)
    told, text = _told(owner), f"{birth(owner)} {tables}"
    if told.exists() and told.read_text() == text:
        return False
    private_files.replace(told, text)
    return True


def _told(owner: int | str) -> Path:
    """Where it is kept what an owner's terminal was told."""
    return FOLDER / f"chalice-local-{owner}.told"
