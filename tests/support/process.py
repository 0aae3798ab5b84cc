"""Herald's commands as child processes, with their output."""

import configparser
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from gateway.server import Running
from tests.support.clients import Client

START_SECONDS = 30.0


class Command:
    """A running `python -m gateway …`, and its output so far."""

    def __init__(self, checkout: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=checkout,
            env={**os.environ, "PORT": "0", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            start_new_session=True,  # a process group, as a shell creates
        )
        self.output = ""

    def interrupt(self) -> None:
        """Press Ctrl-C: a terminal sends the signal to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    @property
    def lives(self) -> bool:
        """True while a process of the group is running."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def until(self, pattern: str) -> re.Match[str]:
        """Read the output until it matches `pattern`, and return the match."""
        assert self.process.stdout is not None
        while (found := re.search(pattern, self.output)) is None:
            line = self.process.stdout.readline()
            assert line, f"ended without {pattern}:\n{self.output}"
            self.output += line
        return found

    def end(self) -> int:
        """Wait for the end, and return the exit status."""
        output, _ = self.process.communicate(timeout=START_SECONDS)
        self.output += output
        return self.process.returncode


@contextmanager
def running(checkout: Path, printed: Path, **environment: str) -> Iterator[Client]:
    """Run `make run` in a checkout, with its output in a file. Yields a client of it."""
    with printed.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "run"],
            cwd=checkout,
            env={**os.environ, "PORT": "0", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with closing(Client(_wait_until_started(process, printed, checkout))) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def _wait_until_started(
    process: "subprocess.Popen[bytes]", printed: Path, checkout: Path
) -> Running:
    end = time.monotonic() + START_SECONDS
    while (ready := re.search(r"REST\s+http://(\S+)[\s\S]*curl", printed.read_text())) is None:
        assert process.poll() is None, printed.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    aws = configparser.ConfigParser()
    aws.read(checkout / ".herald" / "aws.config")
    address = ready[1]
    return Running(
        http=f"http://{address}",
        websocket=f"ws://{address}/ws",
        management=f"http://{address}/ws",
        aws={
            "AWS_ENDPOINT_URL": aws["default"]["endpoint_url"],
            "AWS_REGION": aws["default"]["region"],
            "AWS_ACCESS_KEY_ID": aws["default"]["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": aws["default"]["aws_secret_access_key"],
        },
    )


def processes_of(parent: int) -> list[int]:
    """Return the ids of a process's descendants."""
    lines = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pairs = [tuple(map(int, line.split())) for line in lines]
    found = [parent]
    for ancestor in found:
        found += [pid for pid, ppid in pairs if ppid == ancestor]
    return found[1:]


def alive(pid: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def children() -> set[str]:
    """Return the ids of the processes that the calling thread has started, and of theirs."""
    found = Path("/proc/thread-self/children").read_text().split()
    for child in found:
        for listed in Path(f"/proc/{child}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found += listed.read_text().split()
    return set(found)
