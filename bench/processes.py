"""Reads what processes use, from Linux's /proc."""

import contextlib
import os
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def execution_environments() -> list[int]:
    """Return the ids of the processes in which the local gateway runs functions."""
    found = []
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"gateway.functions.runtime" in command_line.read_bytes():
                found.append(int(command_line.parent.name))
    return found


def cpu_ticks(process: int) -> int:
    """Return the processor time that a process has used, in ticks."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def peak_megabytes(process: int) -> float:
    """Return the most memory that a process has had since `reset_peak`, in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def reset_peak(process: int) -> None:
    """Let a process's peak memory begin at what it has now."""
    Path(f"/proc/{process}/clear_refs").write_text("5")
