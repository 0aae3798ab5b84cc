"""Standard output and standard error, shared with the processes that print beside this one."""

import io
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


def print_whole_lines() -> None:
    """Write a line as soon as it is complete, even into a pipe, so that lines don't mix.

    Lines are dropped once the reader has gone, as behind `| head`.
    """
    sys.stdout, sys.stderr = _line_buffered(sys.stdout), _line_buffered(sys.stderr)


def _line_buffered(stream: TextIO) -> io.TextIOWrapper:
    raw = _DroppingFile(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True
    )


class _DroppingFile(io.FileIO):
    """A file that ignores what is written after its reader has gone."""

    def write(self, data: "Buffer") -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes
