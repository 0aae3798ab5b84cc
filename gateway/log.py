"""One line for each event, for the person at the terminal."""

import io
import logging
import os
import sys
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, TextIO

from gateway.api.events import WebSocketContext

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger("gateway")

METRICS = b'{"_aws"'
"""How a line in the embedded metric format begins:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html"""

RED, GREEN, YELLOW, BLUE, FAINT = 31, 32, 33, 34, 2
COLOURS = {"CONNECT": GREEN, "DISCONNECT": YELLOW, "ERROR": RED, "REST": BLUE, "RELOAD": FAINT}


def log_to_terminal() -> None:
    """Show the lines; nothing is shown where nobody asked for it.

    In colour on a terminal, unless NO_COLOR is set: https://no-color.org
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Lines(in_colour=_in_colour()))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def print_whole_lines() -> None:
    """Write each line when it is complete, also into a pipe, where others write theirs; and drop it
    where nobody reads any more, such as behind `| head`."""
    sys.stdout, sys.stderr = _lines(sys.stdout), _lines(sys.stderr)


def _lines(stream: TextIO) -> io.TextIOWrapper:
    raw = _Unread(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True
    )


class _Unread(io.FileIO):
    """A file whose reader may go away."""

    def write(self, data: "Buffer") -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def is_read_by_a_person() -> bool:
    """Whether the output is a terminal's."""
    return sys.stdout.isatty()


def _in_colour() -> bool:
    return is_read_by_a_person() and not os.environ.get("NO_COLOR")


async def show_printed(lines: AsyncIterable[bytes]) -> None:
    """What functions print, for a person: faint, and without the metrics, of which each invocation
    prints a line for CloudWatch."""
    start, end = (f"\x1b[{FAINT}m", "\x1b[0m") if _in_colour() else ("", "")
    async for line in lines:
        if not line.startswith(METRICS):
            print(f"{start}{line.decode(errors='replace').rstrip()}{end}", flush=True)


class _Lines(logging.Formatter):
    """The time, the kind of the event, and what happened."""

    def __init__(self, *, in_colour: bool) -> None:
        super().__init__("%(asctime)s  %(message)s", "%H:%M:%S")
        self._in_colour = in_colour

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        kind = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        if not self._in_colour or kind not in COLOURS:
            return line
        return line.replace(kind, f"\x1b[{COLOURS[kind]}m{kind}\x1b[0m", 1)


def log_event(kind: str, context: WebSocketContext, what: str) -> None:
    """Such as `12:00:01  CONNECT     BFaT_fALIAMCKug=  alice  101`."""
    principal = printable((context.authorizer or {}).get("principalId", "-"))
    log_line(kind, f"{context.connection_id}  {principal}  {what}")


def printable(text: str) -> str:
    """Text of a client's on one line, without what a terminal would obey."""
    return text if text.isprintable() else ascii(text)[1:-1]


def log_line(kind: str, what: str) -> None:
    logger.info("%-10s  %s", kind, what)
