"""Lambda: a pool of execution environments that start on demand, stay warm and fail alone.

Each environment is a process with one invocation at a time. So invocations run in parallel, see
nothing but JSON, and a crash affects one of them. A reload replaces the environments; sockets stay
open.
"""

import asyncio
import os
from collections import deque
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from gateway.configuration import PROJECT
from gateway.functions.declarations import Declarations
from gateway.functions.execution_environment import ExecutionEnvironment, FunctionError
from gateway.log import log_line

MAX_STARTING = 2
"""The number of environments that may start at the same time."""
ACCOUNT_VARIABLES = {"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_PROFILE"}
"""Variables about the user's own AWS account, which functions must not see."""
NOTHING_DECLARED: Declarations = {
    "routes": {},
    "preflights": {},
    "websocket": {},
    "schedules": {},
    "queues": {},
    "functions": [],
    "binaryTypes": [],
}


class Environments:
    """The pool of execution environments.

    `declared` is what the app declares, from the newest environment that started.

    Args:
        project: The folder of `app.py`.
        variables: The variables that functions see beside this process's own.
        concurrency: The largest number of environments.
        function_timeout: Seconds until an invocation is killed.
    """

    def __init__(
        self,
        project: Path,
        variables: Mapping[str, str],
        *,
        concurrency: int,
        function_timeout: float,
    ) -> None:
        self.declared = NOTHING_DECLARED
        self._project = project
        self._variables = {
            name: value
            for name, value in {**os.environ, **variables}.items()
            if name not in ACCOUNT_VARIABLES
        }
        # The working directory leads to the app, and this leads to `gateway.functions.runtime`.
        self._variables["PYTHONPATH"] = str(PROJECT)
        self._concurrency = concurrency
        self._function_timeout = function_timeout
        self._generation = 0
        self._idle: list[ExecutionEnvironment] = []
        self._waiting: deque[asyncio.Future[ExecutionEnvironment]] = deque()
        self._environments: set[ExecutionEnvironment] = set()
        self._starting = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start the first environment. Raises FunctionError if the app can't be imported."""
        self._release(await self._start_environment())

    async def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        """Invoke a function with an event and return its result. Raises FunctionError.

        A function runs to its end even if the caller is cancelled.
        """
        invocation = _spawn(self._invoke(function, event), self._tasks)
        try:
            return await asyncio.shield(invocation)
        except asyncio.CancelledError:
            invocation.add_done_callback(partial(_log_failure, function))
            raise

    async def _invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        environment = await self._acquire()
        invocation = {
            "function": function,
            "event": event,
            "requestId": str(uuid4()),
            "seconds": self._function_timeout,
        }
        try:
            return await environment.invoke(invocation, self._function_timeout)
        finally:
            self._release(environment)

    async def reload(self) -> None:
        """Replace the environments, a busy one after its invocation.

        Raises FunctionError if the app can't be imported.
        """
        self._generation += 1
        for environment in self._idle:
            self._retire(environment)
        self._idle.clear()
        await self.start()

    async def stop(self) -> None:
        """End every environment at once, even a busy one."""
        self._generation += 1
        self._concurrency = 0
        for environment in self._environments.difference(self._idle):
            environment.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for environment in self._environments.copy():  # those left were idle
            self._retire(environment)
        await asyncio.gather(*self._stopping)

    async def _acquire(self) -> ExecutionEnvironment:
        """Take an idle environment, or wait for one. Raises FunctionError if none can start."""
        if self._idle:
            return self._idle.pop()
        turn: asyncio.Future[ExecutionEnvironment] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._start_more()
        return await turn

    def _release(self, environment: ExecutionEnvironment) -> None:
        """Hand an environment to the first that waits; retire it if it has ended or is outdated."""
        if environment.ended or environment.generation != self._generation:
            self._retire(environment)
            self._start_more()
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(environment)
                return
        self._idle.append(environment)

    def _retire(self, environment: ExecutionEnvironment) -> None:
        self._environments.discard(environment)
        _spawn(environment.stop(), self._stopping)

    def _start_more(self) -> None:
        """Start environments for the invocations that wait, as far as the limits allow."""
        while (
            self._starting < min(len(self._waiting), MAX_STARTING)
            and len(self._environments) + self._starting < self._concurrency
        ):
            self._starting += 1
            _spawn(self._start_one(), self._tasks)

    async def _start_one(self) -> None:
        """Start an environment and release it; on failure, every waiting invocation fails."""
        try:
            environment = await self._start_environment()
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

    async def _start_environment(self) -> ExecutionEnvironment:
        generation = self._generation
        environment, declared = await ExecutionEnvironment.start(
            self._project, self._variables, generation
        )
        self._environments.add(environment)
        if generation == self._generation:
            self.declared = declared
        return environment


def _log_failure(function: str, invocation: asyncio.Task[Any]) -> None:
    """Log the error of an invocation whose caller was cancelled."""
    if not invocation.cancelled() and (error := invocation.exception()) is not None:
        log_line("ERROR", f"{function} failed: {error}")


def _spawn(work: Coroutine[Any, Any, Any], tasks: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """Start a task, and keep a reference to it in `tasks` until it finishes."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
