"""Processes that a fork server starts: this process's side of `gateway.machine.fork_server`.

Each one has a lifeline, a socket pair between this process and the server. It brings the folder and
the variables to the new process, and its id and exit status back. If the server ends first, its
processes are killed.
"""

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from gateway.machine.signals import without_interrupts

STOP_SECONDS = 5.0


class ForkedProcess:
    """A process that a fork server starts, with what `asyncio.subprocess.Process` has.

    Args:
        lifeline: A socket whose other end the server has.
        request: The line for the new process.
        stdout: Its output, if it is a pipe.
    """

    def __init__(
        self, lifeline: socket.socket, request: bytes, stdout: asyncio.StreamReader | None
    ) -> None:
        self.stdout = stdout
        self.pid: int | None = None
        """None until it has started."""
        self.returncode: int | None = None
        """None until it has ended."""
        self._is_killed = False
        self._watching = asyncio.create_task(self._watch(lifeline, request))

    def kill(self) -> None:
        """Kill the process, as soon as it has started."""
        self._is_killed = True
        if self.pid is not None and self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until the process has ended. Returns its exit status, negative for a signal."""
        return await asyncio.shield(self._watching)

    async def _watch(self, lifeline: socket.socket, request: bytes) -> int:
        loop = asyncio.get_running_loop()
        received = b""
        with lifeline, contextlib.suppress(ConnectionError):
            await loop.sock_sendall(lifeline, request)
            while chunk := await loop.sock_recv(lifeline, 64):
                received += chunk
                if self.pid is None and b"\n" in received:
                    self.pid = int(received.split(b"\n")[0])
                    if self._is_killed:
                        self.kill()
        lines = received.split(b"\n")
        if len(lines) < 3:  # no status: the server has ended
            self.kill()
        self.returncode = int(lines[1]) if len(lines) == 3 else -signal.SIGKILL
        return self.returncode


class ForkServer:
    """A fork server that starts at the first use, and ends with this process. It is thread-safe.

    Args:
        preloaded: The module that the server imports.
        program: The module whose `main` its processes run.
        folder: The folder in which Python finds both.
        hidden: The prefix of the variables that the server must not have.
    """

    def __init__(self, preloaded: str, program: str, *, folder: Path, hidden: str) -> None:
        self._modules = [preloaded, program]
        self._folder = folder
        self._hidden = hidden
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Start the server, unless it runs. It takes processes at once, and starts them later."""
        with self._lock:
            self._start()

    def start_process(
        self,
        argument: int,
        *,
        folder: Path,
        variables: Mapping[str, str],
        stdout: tuple[int, asyncio.StreamReader] | None = None,
    ) -> ForkedProcess:
        """Start a process in a folder, whose `main` gets a descriptor.

        It inherits this process's output; `stdout` is the writing and the reading end of a pipe
        instead.
        """
        request = {"folder": str(folder.absolute()), "variables": dict(variables)}
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            writing = 1 if stdout is None else stdout[0]
            try:
                self._send([theirs.fileno(), writing, 2, argument])
            except BaseException:
                ours.close()
                raise
        line = json.dumps(request).encode() + b"\n"
        return ForkedProcess(ours, line, None if stdout is None else stdout[1])

    def _send(self, descriptors: list[int]) -> None:
        with self._lock:
            try:
                socket.send_fds(self._start(), [b"f"], descriptors)
            except ConnectionError:  # the server has just ended
                self._close()
                socket.send_fds(self._start(), [b"f"], descriptors)

    def _start(self) -> socket.socket:
        """Return the socket to the server, which is started if it isn't running."""
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._close()
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-m", "gateway.machine.fork_server", str(theirs.fileno())]
        variables = {
            name: text for name, text in os.environ.items() if not name.startswith(self._hidden)
        }
        with theirs, without_interrupts():
            self._process = subprocess.Popen(  # noqa: S603
                [*command, *self._modules],
                pass_fds=[theirs.fileno()],
                cwd=self._folder,
                env={**variables, "PYTHONPATH": str(self._folder)},
            )
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        return self._control

    def stop(self) -> None:
        """End the server, and wait until it has ended."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None
