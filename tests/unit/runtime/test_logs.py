"""The lines of the log: the correlation id, who caused them, and how many there are."""

import json
import logging
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest

from chalicelib.errors import BadRequest, Forbidden, RateLimited
from chalicelib.runtime.logs import (
    ATTRIBUTION,
    REFUSAL_BURST,
    REFUSAL_SECONDS,
    REFUSED_SENDERS,
    RefusalLog,
    attribute,
    attribute_address,
    configure_logging,
    correlated,
    correlation_id,
)


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


# --- Who caused it

NAME = 'zoë\n{"level":"ERROR"}\u2028\N{PARTY POPPER}'


def test_lines_have_the_tenant_the_user_and_the_address_until_the_work_ends(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    with correlated("request"):
        attribute_address("192.0.2.1")
        logger.info("1")
        attribute(None, "alice")
        logger.info("2")
    with correlated("another"):
        logger.info("3")
    caused = [{name: one[name] for name in ATTRIBUTION if name in one} for one in lines(capsys)]
    assert caused == [
        {"sourceIp": "192.0.2.1"},
        {"tenant": "", "sender": "alice", "sourceIp": "192.0.2.1"},
        {},
    ]


def test_lines_do_not_have_what_was_known_before_the_work_began(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    attribute("acme", "alice", "192.0.2.1")
    with correlated("request"):
        logger.info("hello")
    [line] = lines(capsys)
    assert not line.keys() & set(ATTRIBUTION)


def test_a_name_cannot_begin_another_line(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    with correlated("request"):
        attribute(NAME, NAME, "192.0.2.1")
        logger.info("hello", extra={"userId": NAME})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    line = json.loads(printed)
    assert [line["tenant"], line["sender"], line["userId"]] == [NAME] * 3


# --- Refusals


class Refused:
    """Refusals of users, on a clock that stands still."""

    def __init__(self, logger: logging.Logger) -> None:
        self.now = 0.0
        self.log = RefusalLog(logger, lambda: self.now)

    def refuse(self, user: str, times: int = 1) -> None:
        with correlated("request"):
            attribute("acme", user, "192.0.2.1")
            for _ in range(times):
                self.log.add("frame", RateLimited("too fast"))


def test_a_flood_of_refusals_writes_a_bounded_number_of_lines_for_each_sender(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    refused = Refused(logger)
    refused.refuse("alice", 1000)
    refused.refuse("bob")
    refused.now += REFUSAL_SECONDS
    refused.refuse("alice", 2)
    written = [(one["sender"], one.get("leftOut")) for one in lines(capsys)]
    assert written == [("alice", None)] * REFUSAL_BURST + [("bob", None), ("alice", 995)]


def test_the_senders_whose_refusals_are_counted_are_bounded(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    refused = Refused(logger)
    for number in range(REFUSED_SENDERS + 1):
        refused.refuse(f"user-{number}")
    assert len(lines(capsys)) == REFUSED_SENDERS + 1
    assert refused.log.senders == 1


def test_the_detail_of_a_refusal_is_left_out_if_it_may_quote_what_was_sent(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    log = RefusalLog(logger)
    log.add("frame", BadRequest("SECRET is not a known field"), connectionId="c")
    log.add("request", Forbidden("the token lacks the scope messages:send"))
    first, second = lines(capsys)
    assert (first["message"], first["code"]) == ("frame refused", "bad_request")
    assert (first["connectionId"], "detail" in first) == ("c", False)
    assert second["detail"] == "the token lacks the scope messages:send"
