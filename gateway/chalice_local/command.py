"""`chalice local`: prepare the process so that the app uses local tables.

They are the tables of a running `make run`, or else those of an emulator of its own. The stage's
AWS resources and the user's own account are never used.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gateway.chalice_local.emulator import EmulatorError
from gateway.chalice_local.reloader import watch_project
from gateway.chalice_local.variables import lead_to_local_aws
from gateway.configuration import MAX_PORT, ConfigurationError
from gateway.first_message import curl
from gateway.machine import private_files
from gateway.machine.processes import is_alive, start_time, wait_for_end
from gateway.registry import REGISTRY, Entry
from gateway.tokens import token

WORKER = "CHALICE_WORKER"
"""The variable that Chalice's reloader sets for the process that serves."""
PORTS_TO_TRY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of `chalice local`."""

    host: str
    port: int
    stage: str

    @property
    def http(self) -> str:
        """The URL at which this machine reaches it."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"  # noqa: S104


class PortTaken(Exception):
    """The port is in use. The text names a free one."""


def prepare(environ: MutableMapping[str, str], arguments: Arguments) -> None:
    """Make `environ`, which the app is about to read, lead to local tables, and print a welcome.

    If that fails, the command ends with a line that says why.
    """
    is_worker = WORKER in environ
    owner = os.getppid() if is_worker else os.getpid()
    try:
        if is_worker:
            if not _started_us(owner):
                os._exit(0)
            threading.Thread(target=_end_with, args=[owner], daemon=True).start()
            watch_project(REGISTRY.newest)
        _refuse_taken_port(arguments)
        gateway = lead_to_local_aws(environ, arguments.stage, owner)
        tables = _describe_tables(gateway)
        if not is_worker or _is_news(owner, tables):
            print(_welcome(environ, arguments, tables), flush=True)
    except (PortTaken, EmulatorError, ConfigurationError) as error:
        stop(str(error))


def stop(line: str) -> NoReturn:
    """End `chalice local` with a line.

    With the reloader, Chalice imports the app in a thread of a child process. An exception would
    end neither that process nor its parent, which counts any end of the child as a success.
    """
    if threading.current_thread() is threading.main_thread():
        raise SystemExit(line)
    print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(ProcessLookupError):
        os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


def _started_us(parent: int) -> bool:
    """Return whether the parent started this process. An adopter is in another process group."""
    try:
        return os.getpgid(parent) == os.getpgrp()
    except OSError:  # it has ended, or belongs to another user
        return False


def _end_with(owner: int) -> None:
    """End this process with its parent, which ends it only on Ctrl-C."""
    wait_for_end(owner)
    _told_file(owner).unlink(missing_ok=True)
    os._exit(0)


def _refuse_taken_port(arguments: Arguments) -> None:
    """Raise PortTaken if another program listens on the port."""
    port = arguments.port
    if _is_free(arguments.host, port):
        return
    holder = "another program" if REGISTRY.newest(port) is None else "`make run` of this checkout"
    candidates = range(port + 1, min(port + PORTS_TO_TRY, MAX_PORT) + 1)
    free = next((other for other in candidates if _is_free(arguments.host, other)), port + 1)
    raise PortTaken(f"Port {port} is in use by {holder}; try: chalice local --port {free}")


def _is_free(host: str, port: int) -> bool:
    """Return whether no program listens there. Chalice reports other problems of an address."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def _describe_tables(gateway: Entry | None) -> str:
    if gateway is None:
        return "its own, deleted when it ends"
    return f"shared with `make run` on port {gateway.port}; messages reach its WebSockets"


def _welcome(environ: Mapping[str, str], arguments: Arguments, tables: str) -> str:
    return f"""
Herald's REST API, served by Chalice. For WebSockets, use `make run`.

  REST    {arguments.http}
  Tables  {tables}

{_first_steps(environ, arguments)}"""


def _first_steps(environ: Mapping[str, str], arguments: Arguments) -> str:
    try:
        alice = token(environ, "alice")
    except ConfigurationError:
        return "HERALD_JWT_SECRET is empty, so tokens come from your identity provider.\n"
    return f"""A token for alice, valid for a day (for another: make token USER=bob):

  {alice}

Send a message:

{curl(arguments.http, alice)}"""


def _is_news(owner: int, tables: str) -> bool:
    """Return whether the owner's terminal hasn't shown these tables yet, and mark them as shown."""
    REGISTRY.make_folder()
    for other in REGISTRY.folder.glob(_told_file("*").name):
        if not is_alive(int(other.stem.rpartition("-")[2])):
            other.unlink(missing_ok=True)
    file, text = _told_file(owner), f"{start_time(owner)} {tables}"
    if file.exists() and file.read_text() == text:
        return False
    private_files.replace(file, text)
    return True


def _told_file(owner: int | str) -> Path:
    """Return the file that holds what an owner's terminal was last told."""
    return REGISTRY.folder / f"chalice-local-{owner}.told"
