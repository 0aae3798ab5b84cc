"""The commands that a user types, as processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest
from websockets.sync.client import connect

from tests.clients import SECRET, eventually

START_SECONDS = 30.0


class Command:
    """A running `python -m gateway …` and what it has printed."""

    def __init__(self, checkout: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=checkout,
            env={**os.environ, "PORT": "0", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.output = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Read what is printed until `pattern` is in it."""
        assert self.process.stdout is not None
        while (found := re.search(pattern, self.output)) is None:
            line = self.process.stdout.readline()
            assert line, f"ended without {pattern}:\n{self.output}"
            self.output += line
        return found

    def end(self) -> int:
        """Wait for the end; the exit status."""
        output, _ = self.process.communicate(timeout=START_SECONDS)
        self.output += output
        return self.process.returncode


@pytest.fixture
def command(checkout: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands; none outlives the test."""
    commands: list[Command] = []

    def start(*arguments: str, **environment: str) -> Command:
        commands.append(Command(checkout, *arguments, **environment))
        return commands[-1]

    yield start
    for started in commands:
        started.process.kill()
        started.process.communicate()


def processes_of(parent: int) -> list[int]:
    """The ids of a process's descendants."""
    lines = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pairs = [tuple(map(int, line.split())) for line in lines]
    found = [parent]
    for ancestor in found:
        found += [pid for pid, ppid in pairs if ppid == ancestor]
    return found[1:]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_run_prints_can_be_pasted(command: Callable[..., Command]) -> None:
    run = command("run")
    url = run.until(r"ws://\S+\?token=\S+")[0]
    curl = run.until(r"(?s)  curl .*?\n\n")[0]
    with connect(url) as bob:
        answer = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["messages"][0]["delivered"] == 1
        assert json.loads(bob.recv(timeout=10))["messages"][0]["data"] == {"text": "Hello, Bob"}
    run.until(r"DISCONNECT .* bob")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(command: Callable[..., Command], number: int) -> None:
    run = command("run")
    url = run.until(r"ws://\S+\?token=\S+")[0]
    children = processes_of(run.process.pid)
    assert len(children) >= 2  # the emulator and an execution environment
    with connect(url):
        began = time.monotonic()
        run.process.send_signal(number)
        assert run.end() == 0
    assert time.monotonic() - began < 10
    assert "Traceback" not in run.output
    assert not any(map(alive, children))


def test_its_children_end_with_it_even_when_it_is_killed(command: Callable[..., Command]) -> None:
    run = command("run")
    run.until("Herald is running")
    children = processes_of(run.process.pid)
    run.process.kill()
    eventually(lambda: not any(map(alive, children)))


def test_everything_listens_on_loopback_alone(command: Callable[..., Command]) -> None:
    run = command("run")
    run.until("Herald is running")
    listening = subprocess.run(
        ["sh", "-c", "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    inodes = {
        os.readlink(f"/proc/{pid}/fd/{descriptor}")
        for pid in [run.process.pid, *processes_of(run.process.pid)]
        for descriptor in os.listdir(f"/proc/{pid}/fd")
        if os.path.islink(f"/proc/{pid}/fd/{descriptor}")
    }
    columns = [line.split() for line in listening.splitlines()]
    ours = [
        column[1] for column in columns if column[3] == "0A" and f"socket:[{column[9]}]" in inodes
    ]
    assert len(ours) >= 2
    assert all(address.startswith("0100007F:") for address in ours)


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("HERALD_MESSAGE_RATE", "fast", "HERALD_MESSAGE_RATE holds 'fast'; allowed: a number"),
        ("HERALD_JWT_SECRET", "geheim", "HERALD_JWT_SECRET holds 6 bytes; allowed: at least 32"),
        ("PORT", "http", "PORT holds 'http'; allowed: a number from 0 to 65535"),
    ],
)
def test_a_wrong_setting_stops_it_with_a_line(
    command: Callable[..., Command], variable: str, value: str, line: str
) -> None:
    run = command("run", **{variable: value})
    assert run.end() != 0
    assert run.output.startswith(line)
    assert "geheim" not in run.output
    assert "Traceback" not in run.output


def test_a_taken_port_is_named(command: Callable[..., Command]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = command("run", PORT=str(port))
        assert run.end() == 1
    assert run.output == f"PORT {port} is taken; try PORT={port + 1}\n"


def test_demo_shows_who_received_the_message(command: Callable[..., Command]) -> None:
    demo = command("demo")
    assert demo.end() == 0
    for name in ("bob's phone", "bob's laptop", "carol"):
        assert re.search(f"{name} received .*Hello from Alice", demo.output)


def test_token_prints_a_token_and_nothing_else(command: Callable[..., Command]) -> None:
    printed = command("token", "alice", "messages:send", HERALD_JWT_SECRET=SECRET)
    assert printed.end() == 0
    claims = jwt.decode(printed.output.strip(), SECRET, algorithms=["HS256"])
    assert (claims["sub"], claims["scope"]) == ("alice", "messages:send")
