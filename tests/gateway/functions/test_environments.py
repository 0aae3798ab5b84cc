"""The pool of execution environments: invocations in parallel, crashes, and a stop that waits."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.functions.environments import Environments
from gateway.server import gateway
from tests.support.clients import configured, eventually
from tests.support.echo import Echo
from tests.support.process import children
from tests.support.slow_app import SLOW_APP


@pytest.mark.parametrize("starting", [False, True])
@pytest.mark.usefixtures("own_processes")
def test_a_stop_waits_for_every_process(tmp_path: Path, starting: bool) -> None:
    (tmp_path / "app.py").write_text(SLOW_APP)
    began = [tmp_path / "1", tmp_path / "2"]

    async def run() -> None:
        environments = Environments(tmp_path, {}, concurrency=3, function_timeout=60.0)
        await environments.start()
        for file in began[: 1 if starting else 2]:
            asking = asyncio.create_task(environments.invoke("sleep", {"began": str(file)}))
            while not file.exists():
                await asyncio.sleep(0.01)
        if starting:
            asking = asyncio.create_task(environments.invoke("sleep", {"began": str(began[1])}))
            while len(children() - before) < 2:
                await asyncio.sleep(0)
        await environments.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert children() == before
        assert asking.cancelled()

    before = children()
    asyncio.run(run())


@pytest.mark.usefixtures("own_processes")
def test_a_stop_waits_for_a_reload(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(SLOW_APP)

    async def run() -> None:
        async with gateway(replace(configured(), project=tmp_path)):
            running = children()
            while not children() - running:
                app.write_text("import time\n\ntime.sleep(60)\n")
                await asyncio.sleep(0.2)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert children() == before

    before = children()
    asyncio.run(run())


def test_handlers_run_in_parallel(echo: Echo, tmp_path: Path) -> None:
    """Each of three handlers waits for the others, so one at a time would never end."""
    code = f"""
import pathlib, time, uuid
here = pathlib.Path({str(tmp_path)!r})
(here / f"running-{{uuid.uuid4()}}").touch()
while len(list(here.glob("running-*"))) < 3:
    time.sleep(0.01)
(here / f"done-{{uuid.uuid4()}}").touch()
"""
    socket = echo.open()
    for _ in range(3):
        echo.run(socket, code)
    eventually(lambda: len(list(tmp_path.glob("done-*"))) == 3)


def test_a_crash_affects_one_invocation_only(echo: Echo, tmp_path: Path) -> None:
    survivor, victim = echo.open(), echo.open()
    done = tmp_path / "done"
    echo.run(survivor, f"import time; time.sleep(1); open({str(done)!r}, 'w')")
    assert victim.ask("os._exit(1)")["message"] == "Internal server error"
    eventually(done.exists)
    survivor.assert_quiet()


def test_a_burst_is_served_by_a_bounded_number_of_processes(
    echo_with: Callable[..., Echo],
) -> None:
    echo = echo_with(concurrency=3)
    with ThreadPoolExecutor(20) as threads:
        sockets = list(threads.map(lambda _: echo.open(), range(20)))
    for opened in sockets:
        echo.run(opened, f"open({str(echo.events_file)!r} + str(os.getpid()), 'w')")
    eventually(lambda: len(echo.events("MESSAGE")) == 20)
    assert 1 <= len(list(echo.events_file.parent.glob("events?*"))) <= 3
