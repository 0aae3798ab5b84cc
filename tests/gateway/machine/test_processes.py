"""Waiting for other processes, and telling them apart."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from gateway.machine.processes import is_alive, start_time, wait_for_end


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when its standard input does."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_end_of_a_process_is_waited_for(
    process: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch, has_pidfd: bool
) -> None:
    """Without `pidfd_open` the kernel can't report the end of a process, so it is polled."""
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    wait = partial(wait_for_end, process.pid, poll_seconds=0.01)
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert waiting.is_alive()
    process.kill()
    process.wait()
    waiting.join()
    wait()


def test_a_process_of_another_user_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert is_alive(1)


def test_a_process_that_has_ended_is_not_alive(process: "subprocess.Popen[bytes]") -> None:
    assert is_alive(process.pid)
    process.kill()
    process.wait()
    assert not is_alive(process.pid)


def test_processes_differ_by_their_start_time(process: "subprocess.Popen[bytes]") -> None:
    assert start_time(process.pid)
    assert start_time(process.pid) == start_time(process.pid)
    assert start_time(process.pid) != start_time(1)


def test_the_start_time_is_empty_if_the_system_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert start_time(os.getpid(), proc=Path("/nowhere")) == ""
