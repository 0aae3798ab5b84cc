"""One execution environment as the gateway sees it: a process of `gateway.functions.runtime`.

It is a fork of a process that has imported `gateway.functions.preloaded`, or on macOS a new one.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gateway.configuration import PROJECT
from gateway.functions.declarations import Declarations
from gateway.log import on_terminal, show_function_output
from gateway.machine.forks import ForkedProcess, ForkServer
from gateway.machine.signals import without_interrupts

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Above Lambda's payload of 6 MB, JSON-escaped."""
STOP_SECONDS = 1
FORKS = sys.platform != "darwin"
"""False where a forked process can't use the system's libraries; there, each one starts anew."""

_server = ForkServer(
    "gateway.functions.preloaded", "gateway.functions.runtime", folder=PROJECT, hidden="AWS_"
)
Channel = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def prepare() -> None:
    """Begin to import what environments have in common, so that the first one starts sooner."""
    if FORKS:
        _server.start()


class FunctionError(Exception):
    """A function raised, crashed, timed out or can't be imported, as Lambda tells the invoker."""

    def __init__(self, error_type: str, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.trace = trace

    @property
    def cause(self) -> str:
        """The type and the message, such as `KeyError: 'x'`."""
        return f"{self.error_type}: {self}"


class ExecutionEnvironment:
    """One process, which handles one invocation at a time.

    `generation` is the number of reloads before it started.
    """

    def __init__(self, process: Process | ForkedProcess, channel: Channel, generation: int) -> None:
        self.generation = generation
        self._process = process
        self._reader, self._writer = channel
        if process.stdout is not None:
            self._showing = asyncio.create_task(show_function_output(process.stdout))

    @classmethod
    async def start(
        cls, project: Path, variables: Mapping[str, str], generation: int
    ) -> "tuple[ExecutionEnvironment, Declarations]":
        """Start a process in the folder `project`.

        Returns the environment and what the app in it declares. Raises FunctionError if the app
        can't be imported.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
            try:
                process = await _start_process(theirs.fileno(), project, variables)
            except BaseException:
                channel[1].close()
                raise
        environment = cls(process, channel, generation)
        try:
            return environment, await environment._read_result()
        except BaseException:
            await environment.stop()
            raise

    async def invoke(self, invocation: Mapping[str, Any], seconds: float) -> Any:
        """Run an invocation, and return the function's result.

        Raises FunctionError. After a crash or a timeout, the environment has `ended`.
        """
        try:
            self._writer.write(json.dumps(invocation).encode() + b"\n")
            async with asyncio.timeout(seconds):
                return await self._read_result()
        except TimeoutError:
            self.kill()
            await self._process.wait()
            raise FunctionError(
                "Sandbox.Timedout", f"Task timed out after {seconds:.2f} seconds"
            ) from None

    async def _read_result(self) -> Any:
        """Read one response of the process. Raises FunctionError."""
        line = b""
        with contextlib.suppress(ConnectionError):
            line = await self._reader.readline()
        if not line:
            code = await self._process.wait()
            raise FunctionError(
                "Runtime.ExitError", f"Runtime exited with error: exit status {code}"
            )
        response = json.loads(line)
        if "error" in response:
            error = response["error"]
            raise FunctionError(
                error["errorType"], error["errorMessage"], "".join(error["stackTrace"])
            )
        return response["result"]

    @property
    def ended(self) -> bool:
        """True if the process has ended."""
        return self._process.returncode is not None

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        if not self.ended:
            self._process.kill()

    async def stop(self) -> None:
        """Close the socket and wait until the process has ended; kill it if it takes too long.

        The process has also ended if this is cancelled.
        """
        ended = asyncio.create_task(self._process.wait())
        try:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
            # Python 3.11's asyncio.timeout has no effect in a task that is being cancelled.
            await asyncio.wait({ended}, timeout=STOP_SECONDS)
        finally:
            self.kill()
            await ended


async def _start_process(
    descriptor: int, project: Path, variables: Mapping[str, str]
) -> Process | ForkedProcess:
    if not FORKS:
        return await _spawn(descriptor, project, variables)
    if not on_terminal():
        return _server.start_process(descriptor, folder=project, variables=variables)
    reading, writing = os.pipe()
    try:
        output = asyncio.StreamReader(MAX_LINE_BYTES)
        await asyncio.get_running_loop().connect_read_pipe(
            partial(asyncio.StreamReaderProtocol, output), os.fdopen(reading, "rb")
        )
        return _server.start_process(
            descriptor, folder=project, variables=variables, stdout=(writing, output)
        )
    finally:
        os.close(writing)


async def _spawn(descriptor: int, project: Path, variables: Mapping[str, str]) -> Process:
    with without_interrupts():
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.functions.runtime",
            str(descriptor),
            pass_fds=[descriptor],
            cwd=project,
            env=variables,
            stdout=asyncio.subprocess.PIPE if on_terminal() else None,
            limit=MAX_LINE_BYTES,
        )
