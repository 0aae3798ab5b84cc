"""Output into a pipe."""

import subprocess
import sys

from gateway.configuration import PROJECT

PROGRAM = """
import sys
from gateway.machine.standard_streams import print_whole_lines
print_whole_lines()
print("first")
sys.stdin.read(1)
print("second")
"""


def test_a_line_is_written_at_once_and_dropped_if_the_reader_has_gone() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0
