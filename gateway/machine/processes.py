"""Other processes of this machine, by their ids."""

import contextlib
import os
import select
import subprocess
import time
from pathlib import Path

PROC = Path("/proc")


def wait_for_end(pid: int, *, poll_seconds: float = 0.25) -> None:
    """Wait until a process has ended, even one that this process didn't start.

    It polls every `poll_seconds` where the kernel can't report the end.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # not Linux, or forbidden in a container
        while is_alive(pid):
            time.sleep(poll_seconds)
    else:
        try:
            select.select([descriptor], [], [])
        finally:
            os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        pass
    return True


def start_time(pid: int, proc: Path = PROC) -> str:
    """Return when a process started, in any format; "" if unknown.

    It distinguishes processes that had the same id, one after the other.
    """
    with contextlib.suppress(OSError):
        # The 22nd field; the second may hold anything, in parentheses. See proc_pid_stat(5).
        return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    with contextlib.suppress(OSError):
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return ""
