"""Logs as JSON, one object a line, for CloudWatch Logs Insights.

Each line has the correlation id of the current work: the id of the request at API Gateway. A
queued message carries it to the workers, so one query finds everything that a request caused.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

_correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
_formatter = LambdaPowertoolsFormatter(
    use_rfc3339=True,
    utc=True,
    location=None,
    json_default=str,
    name="%(name)s",
)


def configure_logging() -> None:
    """Write Herald's log to standard output, however the root logger is configured."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_formatter)
    logger = logging.getLogger("herald")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def correlation_id() -> str | None:
    """Return the correlation id of this thread's work; None if it has none."""
    return _correlation_id.get()


@contextmanager
def correlated(correlation_id: str | None) -> Iterator[None]:
    """Give the work inside, and every line that it logs, a correlation id.

    An execution environment handles one event at a time, so lines that other threads log meanwhile
    get the same id.
    """
    before = _correlation_id.get()
    token = _correlation_id.set(correlation_id)
    _add_to_lines(correlation_id)
    try:
        yield
    finally:
        _correlation_id.reset(token)
        _add_to_lines(before)


def _add_to_lines(correlation_id: str | None) -> None:
    """Set the `correlation_id` of all later lines, whichever thread logs them."""
    if correlation_id is None:
        _formatter.remove_keys(["correlation_id"])
    else:
        _formatter.append_keys(correlation_id=correlation_id)
