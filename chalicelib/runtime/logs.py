"""Logs as JSON, one object a line, as CloudWatch Logs Insights reads them.

Each line has the correlation id of what is being done: the request's id at API Gateway, which goes
with a queued message to its workers, so that one query finds all that became of it.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

_current: ContextVar[str | None] = ContextVar("correlation_id", default=None)
_formatter = LambdaPowertoolsFormatter(
    use_rfc3339=True,
    utc=True,
    location=None,
    json_default=str,
    name="%(name)s",
)


def configure_logging() -> None:
    """Send Herald's own log to standard output, whatever the root logger does."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_formatter)
    logger = logging.getLogger("herald")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def correlation_id() -> str | None:
    """That of what is being done in this thread, if it is known."""
    return _current.get()


@contextmanager
def correlated(correlation_id: str | None) -> Iterator[None]:
    """What is done meanwhile belongs together. An execution environment does one thing at a time,
    so the threads that help have the same id in their lines."""
    before = _current.get()
    token = _current.set(correlation_id)
    _show(correlation_id)
    try:
        yield
    finally:
        _current.reset(token)
        _show(before)


def _show(correlation_id: str | None) -> None:
    if correlation_id is None:
        _formatter.remove_keys(["correlation_id"])
    else:
        _formatter.append_keys(correlation_id=correlation_id)
