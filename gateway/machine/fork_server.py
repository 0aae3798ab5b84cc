"""`python -m gateway.machine.fork_server SOCKET PRELOADED PROGRAM`: a process that forks others.

It imports the module PRELOADED once. Each child then runs `main` of the module PROGRAM, as if
`python -m PROGRAM` had just been started, but what PRELOADED imported is there already. For each
child, the socket gets a byte with four descriptors: the child's lifeline, its standard output and
standard error, and the one that `main` gets. `gateway.machine.forks` sends them, and explains the
lifeline. The process ends when the socket is closed; its children go on.

It has one thread and no event loop, so that its children inherit neither.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple, NoReturn

from gateway.machine import signals

STARTUP_VARIABLES = ("PYTHON", "HOME", "LANG", "LC_", "LD_", "MALLOC_", "BOTO_", "AWS_NEW_RETRIES_")
"""Prefixes of the variables that Python, the C library and the SDK read while they load."""


class Descriptors(NamedTuple):
    """What a child gets from the process that asked for it."""

    lifeline: int
    stdout: int
    stderr: int
    argument: int


def main(control: socket.socket, preloaded: str, program: str) -> None:
    """Fork a child for each request until the socket is closed; in a child, run the program."""
    signals.ignore_interrupts()
    gc.disable()
    importlib.import_module(preloaded)
    module = importlib.import_module(program)
    gc.freeze()  # a collection would copy the memory that children share
    gc.enable()
    descriptors = _serve(control)
    if descriptors is not None and _become_program(descriptors, module.__file__ or "", program):
        module.main(descriptors.argument)
        _end()


def _serve(control: socket.socket) -> Descriptors | None:
    """Fork children, and report their ends. Returns None at the end; in a child, its descriptors.

    A lifeline gets a child's id when it starts, and its exit status when it ends, each as a line.
    """
    lifelines: dict[int, socket.socket] = {}
    woken, waking = socket.socketpair()
    with control, woken, waking:
        waking.setblocking(False)
        signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([control, woken], [], [])
            if woken in ready:
                woken.recv(1024)
                _report_ended(lifelines)
            if control in ready:
                _, received, _, _ = socket.recv_fds(control, 1, len(Descriptors._fields))
                if not received:
                    _stop_noticing_ends()  # a child may end after `waking` is closed
                    return None
                descriptors = Descriptors(*received)
                if _fork(descriptors, lifelines):
                    return descriptors


def _fork(descriptors: Descriptors, lifelines: dict[int, socket.socket]) -> bool:
    """Fork a child. Returns True in the child.

    If there can't be another process, the lifeline is closed without a word.
    """
    try:
        child = os.fork()
    except OSError:
        child = None
    if child == 0:
        _stop_noticing_ends()
        for other in lifelines.values():
            other.close()
        return True
    for descriptor in descriptors[1:]:
        os.close(descriptor)
    lifeline = socket.socket(fileno=descriptors.lifeline)
    if child is None:
        lifeline.close()
    else:
        lifelines[child] = lifeline
        _tell(lifeline, child)
    return False


def _stop_noticing_ends() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def _report_ended(lifelines: dict[int, socket.socket]) -> None:
    """Write the exit status of each child that has ended to its lifeline, and close that."""
    with contextlib.suppress(ChildProcessError):  # there is no child left
        while True:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                return
            with lifelines.pop(child) as lifeline:
                _tell(lifeline, os.waitstatus_to_exitcode(status))


def _tell(lifeline: socket.socket, number: int) -> None:
    with contextlib.suppress(ConnectionError):  # the process that asked for the child has ended
        lifeline.sendall(b"%d\n" % number)


def _become_program(descriptors: Descriptors, file: str, program: str) -> bool:
    """Give the child its own output, folder and variables, as a new process would have them.

    Returns False if the lifeline was closed before it brought them.
    """
    with socket.socket(fileno=descriptors.lifeline) as lifeline, lifeline.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):
        return False
    request = json.loads(line)
    for number, descriptor in ((1, descriptors.stdout), (2, descriptors.stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    variables: dict[str, str] = request["variables"]
    if _startup_variables(variables) != _startup_variables(os.environ) or _hides_loaded_modules():
        os.set_inheritable(descriptors.argument, True)
        command = [sys.executable, "-m", program, str(descriptors.argument)]
        os.execve(sys.executable, command, variables)  # noqa: S606
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()
    sys.argv = [file, str(descriptors.argument)]
    sys.path[0] = os.getcwd()
    importlib.invalidate_caches()
    return True


def _end() -> NoReturn:
    """End the child as Python does, except that nothing is deallocated.

    That would copy most of the memory that children share, and take longer than all else.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _startup_variables(variables: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    return {name: text for name, text in variables.items() if name.startswith(STARTUP_VARIABLES)}


def _hides_loaded_modules() -> bool:
    """Return whether the working directory has other modules under the names of loaded ones.

    A new process would import them, since its working directory comes first.
    """
    folder = os.getcwd()
    for name in {Path(entry).stem for entry in os.listdir(folder)} & sys.modules.keys():
        found = PathFinder.find_spec(name, [folder])
        if found is not None and found.origin != getattr(sys.modules[name], "__file__", None):
            return True
    return False


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3])
