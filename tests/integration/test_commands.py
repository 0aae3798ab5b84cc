"""The commands `make run`, `make demo` and `make token`, run as processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from websockets.sync.client import connect

from gateway.configuration import PROJECT
from tests.support.clients import SECRET, eventually
from tests.support.process import START_SECONDS, Command, alive, processes_of


@pytest.fixture
def command(checkout: Path) -> Iterator[Callable[..., Command]]:
    """Start commands, and kill those that are still running after the test."""
    commands: list[Command] = []

    def start(*arguments: str, **environment: str) -> Command:
        commands.append(Command(checkout, *arguments, **environment))
        return commands[-1]

    yield start
    for started in commands:
        if started.lives:
            os.killpg(started.process.pid, signal.SIGKILL)
        with contextlib.suppress(ValueError):  # a test has closed its output
            started.process.communicate()
        started.process.wait()


def test_the_url_and_the_command_that_run_prints_can_be_pasted(
    command: Callable[..., Command],
) -> None:
    run = command("run")
    url = run.until(r"ws://\S+\?token=\S+")[0]
    curl = run.until(r"(?s)  curl .*?\n\n")[0]
    with connect(url) as bob:
        answer = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["messages"][0]["delivered"] == 1
        assert json.loads(bob.recv(timeout=10))["messages"][0]["data"] == {"text": "Hello, Bob"}
    run.until(r"DISCONNECT .* bob")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_run_cleanly(command: Callable[..., Command], number: int) -> None:
    run = command("run")
    url = run.until(r"ws://\S+\?token=\S+")[0]
    children = processes_of(run.process.pid)
    assert len(children) >= 3  # the fork server, the emulator and an execution environment
    with connect(url):
        began = time.monotonic()
        run.process.send_signal(number)
        assert run.end() == 0
    assert time.monotonic() - began < 10
    assert "Traceback" not in run.output
    assert not any(map(alive, children))


def test_child_processes_end_with_run_even_if_it_is_killed(command: Callable[..., Command]) -> None:
    run = command("run")
    run.until("Herald is running")
    children = processes_of(run.process.pid)
    run.process.kill()
    eventually(lambda: not any(map(alive, children)))


def test_everything_listens_on_loopback_only(command: Callable[..., Command]) -> None:
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
        ("HERALD_MESAGE_RATE", "5", "HERALD_MESAGE_RATE is not a setting; did you mean HERALD_M"),
        ("PORT", "http", "PORT holds 'http'; allowed: a number from 0 to 65535"),
        ("PORT", "-1", "PORT holds '-1'; allowed: a number from 0 to 65535"),
        ("PORT", "65536", "PORT holds '65536'; allowed: a number from 0 to 65535"),
        ("PORT", "8000.5", "PORT holds '8000.5'; allowed: a number from 0 to 65535"),
        ("PORT", "nan", "PORT holds 'nan'; allowed: a number from 0 to 65535"),
        ("HOST", "999.1.1.1", "HOST holds '999.1.1.1'; allowed: an address or a name of this"),
        ("HOST", "192.0.2.1", "HOST holds '192.0.2.1'; allowed: an address or a name of this"),
        (
            "HOST",
            "no.host.invalid",
            "HOST holds 'no.host.invalid'; allowed: an address or a name of this",
        ),
        ("HOST", "a..b", "HOST holds 'a..b'; allowed: an address or a name of this"),
        ("HOST", "::9", "HOST holds '::9'; allowed: an address or a name of this"),
    ],
)
def test_a_wrong_setting_stops_run_with_one_line(
    command: Callable[..., Command], variable: str, value: str, line: str
) -> None:
    run = command("run", **{variable: value})
    assert run.end() != 0
    assert run.output.startswith(line)
    assert run.output.count("\n") == 1
    assert "geheim" not in run.output
    assert "Traceback" not in run.output


def test_a_port_in_use_is_reported_with_another(command: Callable[..., Command]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = command("run", PORT=str(port))
        assert run.end() == 1
    assert run.output == f"PORT {port} is in use; try PORT={port + 1}\n"


def test_the_port_below_is_suggested_for_the_last_port(command: Callable[..., Command]) -> None:
    with socket.create_server(("127.0.0.1", 65535)):
        run = command("run", PORT="65535")
        assert run.end() == 1
    assert run.output == "PORT 65535 is in use; try PORT=65534\n"


def test_demo_prints_in_order_into_a_pipe(command: Callable[..., Command]) -> None:
    demo = command("demo")
    assert demo.end() == 0
    lines = [
        "running at",
        "carol is connected",
        '"message":"broadcast"',
        "posted",
        "carol received",
    ]
    places = [demo.output.index(line) for line in lines]
    assert places == sorted(places)


def test_demo_succeeds_even_if_nobody_reads_all_its_output(
    command: Callable[..., Command],
) -> None:
    demo = command("demo")
    demo.until("Herald is running")
    assert demo.process.stdout is not None
    demo.process.stdout.close()
    assert demo.process.wait(START_SECONDS) == 0


def test_demo_fails_with_one_line_if_clients_are_refused(command: Callable[..., Command]) -> None:
    demo = command("demo", HERALD_IP_DENY="127.0.0.0/8")
    assert demo.end() == 1
    assert "bob's phone could NOT connect: the handshake was answered 403\n" in demo.output
    assert "Traceback" not in demo.output


@pytest.mark.parametrize("name", ["run", "demo"])
def test_ctrl_c_while_modules_are_imported_is_quiet(
    command: Callable[..., Command], name: str
) -> None:
    started = command(name)
    loaded = Path(f"/proc/{started.process.pid}/maps")
    eventually(lambda: "_ssl" in loaded.read_text())  # one of the first of many
    assert_quiet(started)


@pytest.mark.parametrize("children", [1, 2, 3])  # the fork server; the emulator; a function's
@pytest.mark.parametrize("name", ["run", "demo"])
def test_ctrl_c_before_anything_listens_is_quiet(
    command: Callable[..., Command], name: str, children: int
) -> None:
    started = command(name)
    eventually(lambda: len(processes_of(started.process.pid)) >= children, START_SECONDS)
    assert_quiet(started)


@pytest.mark.parametrize(
    ("name", "line"),
    [("run", "Herald is running"), ("demo", "Herald is running"), ("demo", "phone is connected")],
)
def test_ctrl_c_while_it_runs_is_quiet(
    command: Callable[..., Command], name: str, line: str
) -> None:
    started = command(name)
    started.until(line)
    assert_quiet(started)


def test_ctrl_c_while_a_function_runs_is_quiet(command: Callable[..., Command]) -> None:
    """The function delivers to a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as asking:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}/ws"
        run = command("run", HERALD_MANAGEMENT_ENDPOINT=endpoint)
        http = httpx.Client(base_url=run.until(r"http://\S+")[0], timeout=START_SECONDS)
        url = run.until(r"ws://\S+\?token=\S+")[0]
        alice = run.until(r"Bearer (\S+)'")[1]
        with http, connect(url):
            answer = asking.submit(_post, http, {"to": {"users": ["bob"]}, "data": 1}, alice)
            with listener.accept()[0]:
                assert_quiet(run)
            assert answer.exception() is not None or answer.result().status_code >= 500


def assert_quiet(started: Command) -> None:
    """Press Ctrl-C twice: the command and its children end without a traceback."""
    started.interrupt()
    started.interrupt()
    assert started.end() in (0, 130, -signal.SIGINT), started.output  # a shell calls the last 130
    assert "Traceback" not in started.output
    assert "rror" not in started.output
    assert "xception" not in started.output
    eventually(lambda: not started.lives)


def test_demo_shows_who_received_the_message(command: Callable[..., Command]) -> None:
    demo = command("demo")
    assert demo.end() == 0
    for name in ("bob's phone", "bob's laptop", "carol"):
        assert re.search(f"{name} received .*Hello from Alice", demo.output)


def test_token_prints_a_token_and_nothing_else(command: Callable[..., Command]) -> None:
    printed = command("token", "alice", "messages:send", HERALD_JWT_SECRET=SECRET)
    assert printed.end() == 0
    claims = jwt.decode(printed.output.strip(), OctKey.import_key(SECRET)).claims
    assert (claims["sub"], claims["scope"]) == ("alice", "messages:send")


def test_token_reports_a_secret_that_no_stage_accepts(command: Callable[..., Command]) -> None:
    printed = command("token", "alice", HERALD_JWT_SECRET="short")
    assert printed.end() == 2
    [line] = printed.output.splitlines()  # and no warning of PyJWT's
    assert line.startswith("HERALD_JWT_SECRET can't sign a token: The HMAC key is 5 bytes long")


@pytest.mark.parametrize("user", ["", " "])
def test_token_without_a_user_is_an_error(command: Callable[..., Command], user: str) -> None:
    refused = command("token", user)
    assert refused.end() == 2
    assert "make token USER=alice" in refused.output
    assert refused.output.count("\n") == 1


@pytest.fixture
def make(checkout: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `make` in a checkout whose environment is this Python with its packages."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.in", "requirements-dev.txt"):
        shutil.copy(PROJECT / name, checkout)
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (checkout / ".venv" / ".ready").write_text("made\n")

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        outside = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(
            ["make", "-s", *arguments],
            cwd=checkout,
            env={**outside, "HERALD_JWT_SECRET": SECRET, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("arguments", [[], ["USER="], ["USER= "], ["SCOPE=ws:connect"]])
def test_make_token_without_a_user_is_an_error_whatever_the_shell_says(
    make: Callable[..., "subprocess.CompletedProcess[str]"], arguments: list[str]
) -> None:
    refused = make("token", *arguments, USER="root", LOGNAME="root")
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert 'make token USER=alice [SCOPE="messages:send"]' in refused.stderr


EVERYTHING = "ws:connect messages:send messages:broadcast"


@pytest.mark.parametrize(
    ("arguments", "environment", "scope"),
    [
        ([], {}, EVERYTHING),
        ([], {"SCOPE": ""}, EVERYTHING),
        ([], {"SCOPE": "ws:connect"}, "ws:connect"),
        (["SCOPE=messages:send ws:connect"], {"SCOPE": "x"}, "messages:send ws:connect"),
        (["SCOPE="], {}, ""),
    ],
)
def test_make_token_takes_the_scope_of_the_command_line_or_else_of_the_environment(
    make: Callable[..., "subprocess.CompletedProcess[str]"],
    arguments: list[str],
    environment: dict[str, str],
    scope: str,
) -> None:
    printed = make("token", 'USER=o\'brien "bo" `id`', *arguments, USER="root", **environment)
    assert printed.returncode == 0, printed.stderr
    [line] = printed.stdout.splitlines()
    claims = jwt.decode(line, OctKey.import_key(SECRET)).claims
    assert (claims["sub"], claims["scope"]) == ('o\'brien "bo" `id`', scope)


def _post(http: httpx.Client, body: object, bearer: str) -> httpx.Response:
    return http.post("/messages", json=body, headers={"Authorization": f"Bearer {bearer}"})
