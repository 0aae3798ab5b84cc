"""Other processes of this machine, by their ids."""

import contextlib
import os
import select
import subprocess
import time
from pathlib import Path

POLL_SECONDS = 0.25
PROC = Path("/proc")


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended; it need not be a child of this one."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # not Linux, or forbidden in a container
        while is_alive(pid):
            time.sleep(POLL_SECONDS)
    else:
        try:
            select.select([descriptor], [], [])
        finally:
            os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def birth(pid: int) -> str:
    """Return when a process began, so that two which had the same id, in turn, differ."""
    with contextlib.suppress(OSError):
        # The 22nd field; the second may hold anything, in parentheses. See proc_pid_stat(5).
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    with contextlib.suppress(OSError):
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return ""
