import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.machine import processes
from gateway.machine.processes import birth, is_alive, wait_for_end


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when its standard input does."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


@pytest.fixture
def without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that can't say when a process ends."""
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.01)


def assert_waits(process: "subprocess.Popen[bytes]") -> None:
    waiting = threading.Thread(target=wait_for_end, args=[process.pid])
    waiting.start()
    assert waiting.is_alive()
    process.kill()
    process.wait()
    waiting.join()


def test_the_end_of_a_process_is_waited_for(process: "subprocess.Popen[bytes]") -> None:
    assert_waits(process)
    wait_for_end(process.pid)


@pytest.mark.usefixtures("without_pidfd")
def test_the_end_is_waited_for_where_the_kernel_does_not_say_it(
    process: "subprocess.Popen[bytes]",
) -> None:
    assert_waits(process)
    wait_for_end(process.pid)


def test_a_process_of_another_user_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert is_alive(1)


def test_a_process_is_known_by_its_birth(process: "subprocess.Popen[bytes]") -> None:
    assert birth(process.pid)
    assert birth(process.pid) == birth(process.pid)
    assert birth(process.pid) != birth(1)


def test_the_birth_is_unknown_where_nothing_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROC", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert birth(os.getpid()) == ""
