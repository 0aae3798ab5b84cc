"""Lambda: execution environments that start on demand, are kept warm, and fail alone.

Each environment is a process with one invocation at a time, so invocations run in parallel, see
JSON alone, and a crash hurts one of them. A reload replaces the environments; sockets stay open.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from gateway.configuration import PROJECT
from gateway.log import is_read_by_a_person, log_line, show_printed
from gateway.machine.signals import not_inherited

MAX_LINE_BYTES = 16 * 1024 * 1024  # above Lambda's 6 MB payload, escaped
STARTING_AT_ONCE = 2


class FunctionError(Exception):
    """A function raised, crashed, timed out, or can't be imported; as Lambda tells who invoked."""

    def __init__(self, error_type: str, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.trace = trace

    @property
    def cause(self) -> str:
        """Such as `KeyError: 'x'`."""
        return f"{self.error_type}: {self}"


class Environment:
    """One process. `generation` counts the reloads before it started."""

    def __init__(
        self,
        process: Process,
        channel: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        generation: int,
    ) -> None:
        self.generation = generation
        self._process = process
        self._reader, self._writer = channel
        if process.stdout is not None:
            self._showing = asyncio.create_task(show_printed(process.stdout))

    @classmethod
    async def start(
        cls, project: Path, variables: Mapping[str, str], generation: int
    ) -> "tuple[Environment, dict[str, Any]]":
        """A new environment, and what the app in it declares. Raises FunctionError."""
        ours, theirs = socket.socketpair()
        shown = is_read_by_a_person()
        with theirs:
            channel = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
            try:
                with not_inherited():
                    process = await asyncio.create_subprocess_exec(
                        sys.executable,
                        "-m",
                        "gateway.functions.runtime",
                        str(theirs.fileno()),
                        pass_fds=[theirs.fileno()],
                        cwd=project,
                        env=variables,
                        stdout=asyncio.subprocess.PIPE if shown else None,
                        limit=MAX_LINE_BYTES,
                    )
            except BaseException:
                channel[1].close()
                raise
        environment = cls(process, channel, generation)
        try:
            return environment, await environment._answer()
        except BaseException:
            await environment.stop()
            raise

    async def invoke(self, request: Mapping[str, Any], seconds: float) -> Any:
        """The function's result. Raises FunctionError; after a crash or time-out it is `dead`."""
        try:
            self._writer.write(json.dumps(request).encode() + b"\n")
            async with asyncio.timeout(seconds):
                return await self._answer()
        except TimeoutError:
            self.kill()
            await self._process.wait()
            raise FunctionError(
                "Sandbox.Timedout", f"Task timed out after {seconds:.2f} seconds"
            ) from None

    async def _answer(self) -> Any:
        line = b""
        with contextlib.suppress(ConnectionError):
            line = await self._reader.readline()
        if not line:
            code = await self._process.wait()
            raise FunctionError(
                "Runtime.ExitError", f"Runtime exited with error: exit status {code}"
            )
        answer = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            raise FunctionError(
                error["errorType"], error["errorMessage"], "".join(error["stackTrace"])
            )
        return answer["result"]

    @property
    def dead(self) -> bool:
        return self._process.returncode is not None

    def kill(self) -> None:
        if not self.dead:  # it may have ended in this very moment
            self._process.kill()

    async def stop(self) -> None:
        """Hang up, and wait until the process has ended; it has even when this is cancelled."""
        ended = asyncio.create_task(self._process.wait())
        try:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
            # 3.11's asyncio.timeout is no time-out in a task that is being cancelled.
            await asyncio.wait({ended}, timeout=1)
        finally:
            self.kill()
            await ended


class Environments:
    """The pool. `declared` is what the app declares, from the newest environment that started."""

    def __init__(
        self,
        project: Path,
        variables: Mapping[str, str],
        concurrency: int,
        function_timeout: float,
    ) -> None:
        self.declared: dict[str, Any] = {}
        self._project = project
        self._variables = {
            name: value
            for name, value in {**os.environ, **variables}.items()
            # Whatever account the user works with elsewhere, nothing of it belongs in here.
            if name not in {"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_PROFILE"}
        }
        # The project is found as the working directory, and the runtime beside this module.
        self._variables["PYTHONPATH"] = str(PROJECT)
        self._concurrency = concurrency
        self._function_timeout = function_timeout
        self._generation = 0
        self._idle: list[Environment] = []
        self._waiting: deque[asyncio.Future[Environment]] = deque()
        self._environments: set[Environment] = set()
        self._starting = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start the first environment. Raises FunctionError when the app can't be imported."""
        environment = await self._started()
        self._release(environment)

    async def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        """Invoke a function with an event and return its result. Raises FunctionError.

        A function that was started runs to its end, though nobody waits for it any more.
        """
        invocation = _spawn(self._invoke(function, event), self._tasks)
        try:
            return await asyncio.shield(invocation)
        except asyncio.CancelledError:
            invocation.add_done_callback(partial(_log_failure, function))
            raise

    async def _invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        environment = await self._acquire()
        request = {
            "function": function,
            "event": event,
            "requestId": str(uuid4()),
            "seconds": self._function_timeout,
        }
        try:
            return await environment.invoke(request, self._function_timeout)
        finally:
            self._release(environment)

    async def reload(self) -> None:
        """Put new environments in the place of all that there are. Raises FunctionError.

        One that is at work is replaced when it has done.
        """
        self._generation += 1
        for environment in self._idle:
            self._retire(environment)
        self._idle.clear()
        await self.start()

    async def stop(self) -> None:
        """End every environment at once, whatever it is doing."""
        self._generation += 1
        self._concurrency = 0
        for environment in self._environments.difference(self._idle):
            environment.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for environment in self._environments.copy():  # and those at work were retired
            self._retire(environment)
        await asyncio.gather(*self._ending)

    async def _acquire(self) -> Environment:
        if self._idle:
            return self._idle.pop()
        turn: asyncio.Future[Environment] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._start_more()
        return await turn

    def _start_more(self) -> None:
        while (
            self._starting < min(len(self._waiting), STARTING_AT_ONCE)
            and len(self._environments) + self._starting < self._concurrency
        ):
            self._starting += 1
            _spawn(self._start_one(), self._tasks)

    async def _start_one(self) -> None:
        try:
            environment = await self._started()
        except FunctionError as error:
            while self._waiting:
                turn = self._waiting.popleft()
                if not turn.done():
                    turn.set_exception(error)
            return
        finally:
            self._starting -= 1
        self._release(environment)
        self._start_more()

    async def _started(self) -> Environment:
        generation = self._generation
        environment, declared = await Environment.start(self._project, self._variables, generation)
        self._environments.add(environment)
        if generation == self._generation:
            self.declared = declared
        return environment

    def _release(self, environment: Environment) -> None:
        if environment.dead or environment.generation != self._generation:
            self._retire(environment)
            self._start_more()
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(environment)
                return
        self._idle.append(environment)

    def _retire(self, environment: Environment) -> None:
        self._environments.discard(environment)
        _spawn(environment.stop(), self._ending)


def _log_failure(function: str, invocation: asyncio.Task[Any]) -> None:
    """Say what nobody waited for."""
    if not invocation.cancelled() and (error := invocation.exception()) is not None:
        log_line("ERROR", f"{function} failed: {error}")


def _spawn(work: Coroutine[Any, Any, Any], among: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """A task that is among its likes until it is done."""
    task = asyncio.get_running_loop().create_task(work)
    among.add(task)
    task.add_done_callback(among.discard)
    return task
