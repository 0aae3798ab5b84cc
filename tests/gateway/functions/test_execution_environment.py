"""One execution environment: its process, its errors and its end."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.configuration import PROJECT
from gateway.functions import execution_environment
from gateway.functions.execution_environment import ExecutionEnvironment, FunctionError
from tests.support.process import children
from tests.support.slow_app import SLOW_APP

pytestmark = pytest.mark.usefixtures("own_processes")

VARIABLES = {**os.environ, "PYTHONPATH": str(PROJECT)}


def test_a_cancelled_stop_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW_APP)
    began = tmp_path / "began"
    invocation = {
        "function": "sleep",
        "event": {"began": str(began)},
        "requestId": "r",
        "seconds": 60,
    }

    async def run() -> None:
        environment, _ = await ExecutionEnvironment.start(tmp_path, VARIABLES, 0)
        asking = asyncio.create_task(environment.invoke(invocation, 60.0))
        while not began.exists():
            await asyncio.sleep(0.01)
        asking.cancel()
        stopping = asyncio.create_task(environment.stop())
        await asyncio.sleep(0.1)
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        assert children() == before

    before = children()
    asyncio.run(run())


async def _invoke(project: Path, function: str, seconds: float) -> Any:
    environment, _ = await ExecutionEnvironment.start(project, VARIABLES, 0)
    invocation = {
        "function": function,
        "event": {"began": str(project / "began")},
        "requestId": "r",
        "seconds": seconds,
    }
    try:
        return await environment.invoke(invocation, seconds)
    finally:
        await environment.stop()


@pytest.mark.parametrize(
    ("function", "seconds", "cause"),
    [
        ("sleep", 0.2, "Sandbox.Timedout: Task timed out after 0.20 seconds"),
        ("fail", 10, "ZeroDivisionError: division by zero"),
        ("crash", 10, "Runtime.ExitError: Runtime exited with error: exit status 3"),
    ],
)
def test_a_failed_invocation_raises_the_error_that_lambda_reports(
    tmp_path: Path, function: str, seconds: float, cause: str
) -> None:
    (tmp_path / "app.py").write_text(
        SLOW_APP
        + "def fail(event, context):\n    1 / 0\n"
        + "def crash(event, context):\n    import os; os._exit(3)\n"
    )
    with pytest.raises(FunctionError) as failed:
        asyncio.run(_invoke(tmp_path, function, seconds))
    assert failed.value.cause == cause


def test_on_a_terminal_the_output_is_shown_without_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execution_environment, "on_terminal", lambda: True)
    (tmp_path / "app.py").write_text(
        SLOW_APP
        + "def log(event, context):\n"
        + "    print('{\"_aws\": 1}')\n"
        + "    print('a line')\n"
        + "    print('the rest', end='')\n"
    )

    async def run() -> None:
        await _invoke(tmp_path, "log", 10)
        while "the rest" not in (shown := capsys.readouterr().out):
            lines.append(shown)
            await asyncio.sleep(0.01)
        lines.append(shown)

    lines: list[str] = []
    asyncio.run(run())
    assert "".join(lines) == "a line\nthe rest\n"


def test_an_app_that_cannot_be_imported_raises_its_error_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    (tmp_path / "app.py").write_text("import nothing_like_that\n")
    before = children()
    with pytest.raises(FunctionError, match="No module named 'nothing_like_that'") as failed:
        asyncio.run(_invoke(tmp_path, "any", 1))
    assert failed.value.error_type == "ModuleNotFoundError"
    assert failed.value.trace.splitlines()[1].endswith('app.py", line 1, in <module>')
    assert children() == before
