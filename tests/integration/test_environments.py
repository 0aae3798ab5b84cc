"""The processes of functions: none is left behind, and none ends unheard."""

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.configuration import PROJECT
from gateway.functions.environments import Environment, Environments
from gateway.server import gateway
from tests.support.clients import configured

APP = """
import time
from chalice.app import Chalice

app = Chalice(app_name="slow")


@app.lambda_function()
def sleep(event, context):
    open(event["began"], "w").close()
    time.sleep(60)
"""


def processes() -> set[str]:
    return set(Path("/proc/thread-self/children").read_text().split())


@pytest.mark.parametrize("starting", [False, True])
def test_a_stop_waits_for_every_process(tmp_path: Path, starting: bool) -> None:
    (tmp_path / "app.py").write_text(APP)
    began = [tmp_path / "1", tmp_path / "2"]

    async def run() -> None:
        environments = Environments(tmp_path, {}, 3, 60.0)
        await environments.start()
        for file in began[: 1 if starting else 2]:
            asking = asyncio.create_task(environments.invoke("sleep", {"began": str(file)}))
            while not file.exists():
                await asyncio.sleep(0.01)
        if starting:
            asking = asyncio.create_task(environments.invoke("sleep", {"began": str(began[1])}))
            while len(processes() - before) < 2:
                await asyncio.sleep(0)
        await environments.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert processes() == before
        assert asking.cancelled()

    before = processes()
    asyncio.run(run())


def test_a_stop_waits_for_a_reload(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP)

    async def run() -> None:
        async with gateway(replace(configured(), project=tmp_path)):
            running = processes()
            while not processes() - running:
                app.write_text("import time\n\ntime.sleep(60)\n")
                await asyncio.sleep(0.2)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert processes() == before

    before = processes()
    asyncio.run(run())


def test_a_stop_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    began = tmp_path / "began"
    request = {"function": "sleep", "event": {"began": str(began)}, "requestId": "r", "seconds": 60}

    async def run() -> None:
        variables = {**os.environ, "PYTHONPATH": str(PROJECT)}
        environment, _ = await Environment.start(tmp_path, variables, 0)
        asking = asyncio.create_task(environment.invoke(request, 60.0))
        while not began.exists():
            await asyncio.sleep(0.01)
        asking.cancel()
        stopping = asyncio.create_task(environment.stop())
        await asyncio.sleep(0.1)
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        assert processes() == before

    before = processes()
    asyncio.run(run())
