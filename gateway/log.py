"""Log lines for the person at the terminal, one for each event."""

import logging
import os
import sys
from collections.abc import AsyncIterable

logger = logging.getLogger("gateway")

METRICS_START = b'{"_aws"'
"""The start of a line in the embedded metric format:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html"""

RED, GREEN, YELLOW, BLUE, FAINT = 31, 32, 33, 34, 2
COLOURS = {"CONNECT": GREEN, "DISCONNECT": YELLOW, "ERROR": RED, "REST": BLUE, "RELOAD": FAINT}


def log_to_terminal() -> None:
    """Print the log lines from now on; without this call they are not shown.

    They have colours on a terminal, unless NO_COLOR is set: https://no-color.org
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter(in_colour=_in_colour()))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def on_terminal() -> bool:
    """True if the output is shown on a terminal."""
    return sys.stdout.isatty()


def _in_colour() -> bool:
    return on_terminal() and not os.environ.get("NO_COLOR")


async def show_function_output(lines: AsyncIterable[bytes]) -> None:
    """Print a function's output faintly, without the metrics that it prints for CloudWatch."""
    start, end = (f"\x1b[{FAINT}m", "\x1b[0m") if _in_colour() else ("", "")
    async for line in lines:
        if not line.startswith(METRICS_START):
            print(f"{start}{line.decode(errors='replace').rstrip()}{end}", flush=True)


class _Formatter(logging.Formatter):
    """Writes the time, the kind of the event and what happened."""

    def __init__(self, *, in_colour: bool) -> None:
        super().__init__("%(asctime)s  %(message)s", "%H:%M:%S")
        self._in_colour = in_colour

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        kind = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        if not self._in_colour or kind not in COLOURS:
            return line
        return line.replace(kind, f"\x1b[{COLOURS[kind]}m{kind}\x1b[0m", 1)


def log_line(kind: str, text: str) -> None:
    """Log a line such as `12:00:01  REST        GET /health  200  3 ms`."""
    logger.info("%-10s  %s", kind, text)


def printable(text: str) -> str:
    """Return a client's text on one line, with control characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]
