"""The log lines at the terminal."""

import asyncio
import sys
from collections.abc import Iterator

import pytest

from gateway.log import log_line, log_to_terminal, logger, show_function_output
from tests.support.clients import Client, eventually


@pytest.fixture(autouse=True)
def logger_restored() -> Iterator[None]:
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"),
    [(True, "", True), (True, "1", False), (False, "", False)],
)
def test_lines_have_colours_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    no_color: str,
    coloured: bool,
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    log_to_terminal()
    log_line("ERROR", "it broke")
    log_line("QUEUE", "plain")
    error, plain = capsys.readouterr().out.splitlines()
    assert ("\x1b[31mERROR\x1b[0m       it broke" in error) == coloured
    assert ("\x1b" in error) == coloured
    assert plain.endswith("  QUEUE       plain")


def test_functions_output_is_shown_without_their_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    async def show() -> None:
        lines = asyncio.StreamReader()
        lines.feed_data(b'{"level":"INFO"}\n{"_aws": {}}\nbroken \xff\n')
        lines.feed_eof()
        await show_function_output(lines)

    asyncio.run(show())
    assert capsys.readouterr().out.splitlines() == [
        '\x1b[2m{"level":"INFO"}\x1b[0m',
        "\x1b[2mbroken \ufffd\x1b[0m",
    ]


def test_a_client_cannot_control_the_terminal(
    herald: Client, caplog: pytest.LogCaptureFixture
) -> None:
    evil = "eve\r\n12:00:00  CONNECT  \x1b[2J\u202e"
    with caplog.at_level("INFO", "gateway"):
        socket = herald.connect(evil)
        socket.connection.close(4000, "\x1b[2Jbye\n")
        herald.http.get("/users/%0A%1B%5B2J")
        eventually(lambda: "DISCONNECT" in caplog.text)
    assert len([line for line in caplog.messages if "eve\\r\\n12:00:00" in line]) >= 2
    assert all(line.isprintable() for line in caplog.messages)
