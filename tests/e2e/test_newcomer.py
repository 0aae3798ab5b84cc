"""A newcomer's terminal, from `git clone` to `chalice delete`. newcomer.txt has the commands."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from gateway.configuration import PROJECT
from tests.e2e.deployment import emulated, own_architecture, without_aws

SCRIPT = Path(__file__).with_name("newcomer.txt")
RECORD = PROJECT / ".herald" / "newcomer.log"
END_OF_COMMAND = "-- ended with "
WAIT_FOR = (
    'wait_for() { for _ in $(seq 300); do grep -q "$1" "$2" && return; sleep 0.1; done; false; }'
)
SECONDS = 600


class Terminal:
    """A shell that runs one command after another, and records its output."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._shell = subprocess.Popen(
            ["bash", "--norc", "-m"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.record = ""

    def type(self, command: str) -> tuple[str, int]:
        """Run a command. Return its output and its exit status."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self.record += f"$ {command}\n"
        self._shell.stdin.write(f"{command}\nstatus=$?; echo; echo '{END_OF_COMMAND}'$status\n")
        self._shell.stdin.flush()
        printed = ""
        for line in self._shell.stdout:
            if line.startswith(END_OF_COMMAND):
                self.record += printed
                return printed, int(line.removeprefix(END_OF_COMMAND))
            printed += line
        raise AssertionError(f"the shell ended:\n{self.record}{printed}")

    def close(self) -> None:
        """End the shell and what it has started."""
        self._shell.communicate("kill $(jobs -p) 2> /dev/null\n", timeout=60)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A copy of the project's files, which becomes the repository to clone."""
    origin = tmp_path / "origin"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file():
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, origin / name)
    return origin


@pytest.fixture
def endpoint() -> Iterator[str]:
    with emulated() as endpoint:
        yield endpoint


@pytest.fixture
def terminal(tmp_path: Path, origin: Path, endpoint: str) -> Iterator[Terminal]:
    configure(origin, {"AWS_ENDPOINT_URL": endpoint})
    git = ["git", "-c", "user.name=Herald", "-c", "user.email=herald@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Herald"]):
        subprocess.run([*git, *command], cwd=origin, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    aws = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    python = Path(sys.executable).resolve()  # the emulator's functions run on it, too
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(python)
    plain = without_aws()
    environment = {
        **{name: value for name, value in plain.items() if name != "VIRTUAL_ENV"},
        "PATH": f"{tmp_path / 'bin'}:{plain['PATH']}",
        "DEPLOY_PYTHON": str(python),
        "ORIGIN": str(origin),
        "LOCAL_PORT": str(port),
        "EMULATED_AWS": " ".join(f"{name}={value}" for name, value in aws.items()),
    }
    shell = Terminal(tmp_path, environment)
    shell.type(WAIT_FOR)
    yield shell
    shell.close()
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(shell.record)


def configure(project: Path, variables: dict[str, str]) -> None:
    """Give the stage dev its variables, and this machine's architecture, as the emulator needs."""
    path = project / ".chalice" / "config.json"
    config = json.loads(path.read_text())
    config["lambda_architecture"] = own_architecture()
    config["stages"]["dev"]["environment_variables"] = variables
    path.write_text(json.dumps(config, indent=2))


@pytest.mark.timeout(SECONDS)
def test_a_newcomer_gets_from_clone_to_a_deployed_websocket(
    terminal: Terminal, tmp_path: Path, endpoint: str
) -> None:
    printed = ""
    for line in SCRIPT.read_text().splitlines():
        if line.startswith("$ "):
            printed, status = terminal.type(line[2:])
            assert status == 0, f"{line}\n{printed}"
        elif line.startswith("> "):
            assert re.search(line[2:], printed), f"{line}\n{printed}"
        elif line == "! addresses":
            set_addresses(terminal, tmp_path / "herald", endpoint)
        else:
            assert not line or line.startswith("#"), line
    assert "Traceback" not in terminal.record


def set_addresses(terminal: Terminal, clone: Path, endpoint: str) -> None:
    """Tell the shell and the functions the addresses of the APIs in the emulator.

    They are paths, because the host names of API Gateway don't exist here.
    """
    record = json.loads((clone / ".chalice" / "deployed" / "dev.json").read_text())
    made = {resource["name"]: resource for resource in record["resources"]}
    rest = f"{endpoint}/_aws/execute-api/{made['rest_api']['rest_api_id']}/api"
    websocket = f"{endpoint}/_aws/execute-api/{made['websocket_api']['websocket_api_id']}/api"
    terminal.type(f"REST={rest} WS={websocket.replace('http://', 'ws://')}")
    variables = {"AWS_ENDPOINT_URL": endpoint, "HERALD_MANAGEMENT_ENDPOINT": websocket}
    configure(clone, variables)
    functions = boto3.client(
        "lambda",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    for function in functions.list_functions()["Functions"]:
        functions.update_function_configuration(
            FunctionName=function["FunctionName"], Environment={"Variables": variables}
        )
