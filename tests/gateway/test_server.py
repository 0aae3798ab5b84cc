"""The gateway as a whole: where it listens, how it reloads and how it stops."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gateway.configuration import PROJECT
from tests.support.clients import Client, configured, eventually, served
from tests.support.echo import Echo, echoing


def test_messages_are_delivered_on_any_host_that_the_gateway_listens_on() -> None:
    """`@connections` must be called on the host that the gateway listens on."""
    with served(configured(HOST="127.0.0.2")) as running, closing(Client(running)) as client:
        assert running.management.startswith("http://127.0.0.2:")
        client.connect("bob")
        assert client.report({"users": ["bob"]})["delivered"] == 1


def test_sockets_stay_open_while_code_reloads(
    echo_with: Callable[..., Echo], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway")
    project = tmp_path / "project"
    shutil.copytree(PROJECT / "tests" / "apps" / "echo", project)
    echo = echo_with(project=project)
    socket = echo.open()
    source = project / "app.py"
    text = source.read_text()

    source.write_text(text.replace("öffen", "neu"))
    eventually(lambda: echo.http.get("/open/a").text == "neu")
    source.write_text("not Python code")
    eventually(lambda: echo.http.get("/open/a").status_code == 502)
    eventually(lambda: "can't be imported" in caplog.text)
    error = next(line for line in caplog.messages if "can't be imported" in line)
    cause, first, *_ = error.splitlines()
    assert cause.endswith("the app can't be imported: SyntaxError: invalid syntax (app.py, line 1)")
    assert first.strip().startswith(f'File "{source}", line 1')
    source.write_text(text)
    eventually(lambda: echo.http.get("/open/a").text == "öffen")

    assert socket.ask("1/0")["message"] == "Internal server error"


def test_a_stop_is_quick_and_quiet_while_a_handler_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with echoing(tmp_path / "events", stop_timeout=1) as echo:
        capfd.readouterr()
        socket, _ = echo.connected()
        echo.run(socket, "import time; time.sleep(30)")
        eventually(lambda: echo.events("MESSAGE"))
    assert capfd.readouterr().err == ""
