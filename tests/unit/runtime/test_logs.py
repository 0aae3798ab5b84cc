"""The lines of the log, and the correlation id in them."""

import json
import logging
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest

from chalicelib.runtime.logs import configure_logging, correlated, correlation_id


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of Herald's; a test configures it itself, once its output is captured."""
    herald = logging.getLogger("herald")
    handlers, level, propagate = herald.handlers, herald.level, herald.propagate
    yield logging.getLogger("herald.test")
    herald.handlers, herald.propagate = handlers, propagate
    herald.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_is_a_json_object(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    logger.info("hello")
    [line] = lines(capsys)
    assert (line["level"], line["message"], line["name"]) == ("INFO", "hello", "herald.test")
    assert line["timestamp"].endswith(("Z", "+00:00"))
    assert "correlation_id" not in line


def test_lines_have_the_correlation_id_of_the_innermost_work(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    with correlated("outer"):
        with correlated("inner"):
            logger.info("1")
            assert correlation_id() == "inner"
        logger.info("2")
        assert correlation_id() == "outer"
    logger.info("3")
    assert correlation_id() is None
    assert [line.get("correlation_id") for line in lines(capsys)] == ["inner", "outer", None]


def test_lines_of_other_threads_have_the_same_correlation_id(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    with correlated("request"):
        thread = Thread(target=logger.info, args=("from a thread",))
        thread.start()
        thread.join()
    [line] = lines(capsys)
    assert line["correlation_id"] == "request"


def test_an_exception_ends_the_correlation(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    with pytest.raises(LookupError), correlated("failed"):
        raise LookupError
    logger.info("afterwards")
    [line] = lines(capsys)
    assert "correlation_id" not in line
