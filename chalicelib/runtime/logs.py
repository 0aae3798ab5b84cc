"""Logs as JSON, one object a line, for CloudWatch Logs Insights.

Each line has the correlation id of the current work: the id of the request at API Gateway. A
queued message carries it to the workers, so one query finds everything that a request caused. Each
line also has the tenant, the user and the address that caused the work, as far as they are known.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

from chalicelib.errors import ANSWERS, HeraldError

ATTRIBUTION = ("tenant", "sender", "sourceIp")
REFUSAL_BURST = 5  # lines about refusals of one sender in one execution environment, at once
REFUSAL_SECONDS = 10.0  # between two such lines in the long run
REFUSED_SENDERS = 1000  # whose refusals are counted

_correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
_cause: dict[str, str] = {}  # those of ATTRIBUTION that are known
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
    _forget_cause()
    try:
        yield
    finally:
        _correlation_id.reset(token)
        _add_to_lines(before)
        _forget_cause()


def attribute(tenant: str | None, sender: str | None = None, source_ip: str | None = None) -> None:
    """Give every line until the end of this work the tenant, and as far as known the user and the
    address, that caused it.
    """
    fields = {"tenant": tenant or "", "sender": sender, "sourceIp": source_ip}
    _cause.update({name: value for name, value in fields.items() if value is not None})
    _formatter.append_keys(**_cause)


def attribute_address(source_ip: str) -> None:
    """Give every line until the end of this work the address that caused it."""
    _cause["sourceIp"] = source_ip
    _formatter.append_keys(sourceIp=source_ip)


class RefusalLog:
    """Logs refusals, but not all of a flood, since a client could otherwise write any amount.

    Of each sender, an execution environment logs some refusals at once, and later one each ten
    seconds, with the number of those that it left out. Metrics count them all.
    """

    def __init__(self, logger: logging.Logger, now: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._now = now
        self._due: dict[tuple[str, ...], float] = {}
        self._left_out: dict[tuple[str, ...], int] = {}

    @property
    def senders(self) -> int:
        """The number of senders whose refusals are counted."""
        return len(self._due)

    def add(self, what: str, error: HeraldError, **fields: object) -> None:
        """Log that `what` was refused. The detail is left out if it may quote what was sent."""
        sender = tuple(_cause.get(name, "") for name in ATTRIBUTION)
        now = self._now()
        due = max(self._due.get(sender, 0.0), now)
        if due > now + (REFUSAL_BURST - 1) * REFUSAL_SECONDS:
            self._left_out[sender] = self._left_out.get(sender, 0) + 1
            return
        if len(self._due) >= REFUSED_SENDERS:
            self._due.clear()
            self._left_out.clear()
        self._due[sender] = due + REFUSAL_SECONDS
        left_out = self._left_out.pop(sender, 0)
        if left_out:
            fields["leftOut"] = left_out
        if ANSWERS[error.code].status in (401, 403, 429):
            fields["detail"] = error.detail
        self._logger.info("%s refused", what, extra={"code": error.code, **fields})


def _forget_cause() -> None:
    _formatter.remove_keys(ATTRIBUTION)
    _cause.clear()


def _add_to_lines(correlation_id: str | None) -> None:
    """Set the `correlation_id` of all later lines, whichever thread logs them."""
    if correlation_id is None:
        _formatter.remove_keys(["correlation_id"])
    else:
        _formatter.append_keys(correlation_id=correlation_id)
