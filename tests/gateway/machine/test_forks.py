"""Processes of a fork server: they differ from new ones only in how fast they start."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.configuration import PROJECT
from gateway.machine.forks import ForkedProcess, ForkServer
from tests.support.clients import eventually
from tests.support.process import alive, children

PRELOADED, PROGRAM = "tests.support.forked_modules", "tests.support.forked_program"
VARIABLES = {**os.environ, "PYTHONPATH": str(PROJECT), "OF_THE_CHILD": "yes"}
IS_FORKED = "'colorsys' in sys.modules"


class Child:
    """A forked process that evaluates expressions."""

    def __init__(self, server: ForkServer, folder: Path, **variables: str) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process: ForkedProcess = server.start_process(
                theirs.fileno(), folder=folder, variables={**VARIABLES, **variables}
            )

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the process."""
        self.channel.sendall(expression.encode() + b"\n")
        with self.channel.makefile("rb") as lines:
            return json.loads(await asyncio.to_thread(lines.readline))

    async def end(self) -> int:
        """Close the socket, and return the exit status."""
        self.channel.close()
        return await self.process.wait()


@pytest.fixture
def server() -> Iterator[ForkServer]:
    before = children()
    server = ForkServer(PRELOADED, PROGRAM, folder=PROJECT, hidden="AWS_")
    yield server
    server.stop()
    assert children() == before


def evaluate(server: ForkServer, expressions: list[str], folder: Path, **variables: str) -> Any:
    """Return the values of expressions in a new process, which then ends without an error."""

    async def run() -> list[Any]:
        child = Child(server, folder, **variables)
        values = [await child.evaluate(expression) for expression in expressions]
        assert await child.end() == 0
        return values

    return asyncio.run(run())


def test_a_process_has_its_own_folder_and_variables(server: ForkServer, tmp_path: Path) -> None:
    expressions = [
        IS_FORKED,
        "__import__('os').getcwd()",
        "sys.path[:2]",
        "dict(__import__('os').environ)",
        "__import__('subprocess').check_output(['printenv', 'OF_THE_CHILD'], text=True)",
        "__import__('time').tzname[0]",
    ]
    forked, folder, path, variables, printed, zone = evaluate(
        server, expressions, tmp_path, TZ="XYZ-5"
    )
    assert forked
    assert folder == path[0] == str(tmp_path)
    assert path[1] == str(PROJECT)
    assert variables == {**VARIABLES, "TZ": "XYZ-5"}
    assert printed == "yes\n"
    assert zone == "XYZ"


OWN_CHANNELS = """[
    link for link in (
        __import__('os').path.realpath(f'/proc/self/fd/{number}')
        for number in __import__('os').listdir('/proc/self/fd') if int(number) > 2
    ) if 'socket:' in link or 'pipe:' in link or 'anon_inode:' in link
]""".replace("\n", "")


def test_a_process_inherits_only_what_belongs_to_it(server: ForkServer, tmp_path: Path) -> None:
    """The signals that it handles are those of one that starts Python anew."""
    handled = (
        "[getattr(signal.getsignal(n), '__qualname__', str(signal.getsignal(n)))"
        " for n in sorted(signal.valid_signals())]"
    )
    state = [
        OWN_CHANNELS,
        "__import__('os').path.realpath(f'/proc/self/fd/{channel.fileno()}')",
        "__import__('threading').active_count()",
        "[int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])]",
        "signal.set_wakeup_fd(-1)",
    ]

    async def run() -> None:
        first, second = Child(server, tmp_path), Child(server, tmp_path)
        anew = Child(server, tmp_path, PYTHONHASHSEED="1")
        assert await first.evaluate("1 + 1") == 2
        channels, own, threads, blocked, wakeup = [
            await second.evaluate(expression) for expression in state
        ]
        assert channels == [own]
        assert threads == 1
        assert blocked == []
        assert wakeup == -1
        handlers = await second.evaluate(handled)
        assert handlers == await anew.evaluate(handled)
        assert handlers[signal.SIGINT - 1] == str(signal.SIG_IGN)
        assert await first.end() == await second.end() == await anew.end() == 0

    asyncio.run(run())


def test_the_server_has_no_hidden_variable(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "the-users-own")
    [initial] = evaluate(server, ["open('/proc/self/environ').read()"], tmp_path)
    assert "PATH=" in initial
    assert "the-users-own" not in initial


def test_processes_have_their_own_random_numbers(server: ForkServer, tmp_path: Path) -> None:
    expressions = ["__import__('random').random()", "__import__('uuid').uuid4().hex"]
    first, second = (evaluate(server, expressions, tmp_path) for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_the_output_of_a_process_is_this_processs(
    server: ForkServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(server, ["print('out')", "print('err', file=sys.stderr)"], tmp_path)
    assert capfd.readouterr() == ("out\n", "err\n")


def test_a_process_ends_like_others(
    server: ForkServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It waits for its threads and for those of executors, and runs what is registered."""
    wait = "lambda: (__import__('threading').main_thread().join(), print('from a thread'))"
    expressions = [
        "str(__import__('atexit').register(print, 'at the end'))",
        f"__import__('threading').Thread(target={wait}).start()",
        "str(__import__('concurrent.futures').futures.ThreadPoolExecutor().submit(int))",
        "print('no newline', end='')",
    ]
    evaluate(server, expressions, tmp_path)
    assert capfd.readouterr().out == "no newlinefrom a thread\nat the end\n"


@pytest.mark.parametrize(
    ("variable", "value"), [("PYTHONHASHSEED", "1"), ("LC_ALL", "C"), ("HOME", "/nowhere")]
)
def test_variables_that_matter_while_modules_load_start_python_anew(
    server: ForkServer, tmp_path: Path, variable: str, value: str
) -> None:
    expressions = [IS_FORKED, f"__import__('os').environ[{variable!r}]", "sys.path[0]"]
    values = evaluate(server, expressions, tmp_path, **{variable: value})
    assert values == [False, value, str(tmp_path)]


def test_a_module_of_the_folder_is_loaded_in_place_of_one_that_the_server_has(
    server: ForkServer, tmp_path: Path
) -> None:
    (tmp_path / "colorsys.py").write_text("OWN = True\n")
    assert evaluate(server, ["__import__('colorsys').OWN"], tmp_path) == [True]


@pytest.mark.parametrize("end", ["__import__('os')._exit(3)", "__import__('os').abort()"])
def test_the_exit_status_of_a_process_is_known(
    server: ForkServer, tmp_path: Path, end: str
) -> None:
    async def run() -> int:
        child = Child(server, tmp_path)
        child.channel.sendall(end.encode() + b"\n")
        status = await child.process.wait()
        child.channel.close()
        assert child.process.pid is not None
        assert not alive(child.process.pid)
        return status

    assert asyncio.run(run()) == (3 if "exit" in end else -signal.SIGABRT)


@pytest.mark.parametrize("has_started", [True, False])
def test_a_process_can_be_killed(server: ForkServer, tmp_path: Path, has_started: bool) -> None:
    async def run() -> None:
        child = Child(server, tmp_path)
        if has_started:
            await child.evaluate("1")
        child.process.kill()
        assert await child.process.wait() == -signal.SIGKILL
        child.process.kill()
        child.channel.close()

    asyncio.run(run())


def test_a_process_that_is_not_wanted_any_more_runs_nothing(
    server: ForkServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        child = Child(server, tmp_path)  # the loop ends before it sends what the process needs
        child.channel.close()

    asyncio.run(run())
    server.stop()
    assert capfd.readouterr() == ("", "")


def test_processes_are_killed_if_their_server_is_and_another_server_starts_more(
    server: ForkServer, tmp_path: Path
) -> None:
    async def run() -> None:
        child = Child(server, tmp_path)
        parent = await child.evaluate("__import__('os').getppid()")
        os.kill(parent, signal.SIGKILL)
        assert await child.process.wait() == -signal.SIGKILL
        child.channel.close()
        assert child.process.pid is not None
        pid = child.process.pid
        await asyncio.to_thread(eventually, lambda: not alive(pid))

    asyncio.run(run())
    assert evaluate(server, ["1 + 1"], tmp_path) == [2]
