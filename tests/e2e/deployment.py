"""Deploys a stage into the emulator, with the commands that deploy it to AWS."""

import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from gateway.configuration import PROJECT
from gateway.server import Running
from tests.support.clients import SECRET

PYTHON = PROJECT / ".venv" / "e2e" / "bin" / "python"
EMULATE = Path(__file__).with_name("emulate.py")
SECONDS = 60.0
SETTINGS = {
    "HERALD_JWT_SECRET": SECRET,
    "HERALD_INLINE_RECIPIENTS": "2",
    "HERALD_MAX_CONNECTIONS_PER_USER": "2",
    "HERALD_MESSAGE_RATE": "0.001",
    "HERALD_MESSAGE_BURST": "20",
}


class Deployed:
    """A stage of a checkout, deployed into the emulator by CloudFormation or by Chalice."""

    def __init__(self, endpoint: str, checkout: Path, stage: str, method: str) -> None:
        self.stage = stage
        self.method = method
        self._checkout = checkout
        self.aws = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        self._configure({**SETTINGS, "AWS_ENDPOINT_URL": endpoint})

    def client(self, service: Any) -> Any:
        """Return a client of a service of the emulator."""
        return boto3.client(
            service,
            endpoint_url=self.aws["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def deploy(self, **parameters: str) -> str:
        """Run `make deploy`, and return its output."""
        given = " ".join(f"{name}={value}" for name, value in parameters.items())
        printed = self.command("deploy", "--with", self.method, PARAMETERS=given)
        self._rest, self.websocket_api = re.findall(r"(?:REST|WebSocket) +\w+://(\w+)\.", printed)
        self._set_management_endpoint()
        return printed

    def destroy(self) -> str:
        """Run `make destroy`, and return its output."""
        return self.command("destroy", CONFIRM=self.stage)

    def command(self, command: str, *options: str, **environment: str) -> str:
        """Run a command of `python -m infra`, and return its output. Raises RuntimeError."""
        return self._run(
            [sys.executable, "-m", "infra", command, self.stage, *options], environment
        )

    def chalice(self, command: str) -> str:
        """Run a command of Chalice, and return its output. Raises RuntimeError."""
        chalice = str(Path(sys.executable).with_name("chalice"))
        printed = self._run([chalice, command, "--stage", self.stage], {})
        if command == "deploy":  # it sets the functions' variables anew
            self._set_management_endpoint()
        return printed

    def _run(self, command: list[str], environment: dict[str, str]) -> str:
        ended = subprocess.run(
            command,
            cwd=self._checkout,
            env={**without_aws(), **self.aws, **environment},
            check=False,
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            raise RuntimeError(ended.stderr)
        return ended.stdout

    @property
    def running(self) -> Running:
        """The addresses of the stage's APIs in the emulator."""
        websocket = self._api(self.websocket_api)
        return Running(
            http=self._api(self._rest),
            websocket=websocket.replace("http://", "ws://"),
            management=websocket,
            aws=self.aws,
        )

    def _api(self, api: str) -> str:
        """Return an API's URL in the emulator: a path, since its host name doesn't exist."""
        return f"{self.aws['AWS_ENDPOINT_URL']}/_aws/execute-api/{api}/api"

    def _configure(self, variables: dict[str, str]) -> None:
        """Write variables, and this machine's architecture, to `.chalice/config.json`."""
        path = self._checkout / ".chalice" / "config.json"
        config = json.loads(path.read_text())
        stage = config["stages"].setdefault(self.stage, {})
        stage["environment_variables"] = variables
        stage["lambda_architecture"] = own_architecture()
        path.write_text(json.dumps(config))

    def _set_management_endpoint(self) -> None:
        """Tell the functions where `@connections` is, since the host of events doesn't exist."""
        functions = self.client("lambda")
        for function in functions.list_functions()["Functions"]:
            variables = function["Environment"]["Variables"]
            variables["HERALD_MANAGEMENT_ENDPOINT"] = self._api(self.websocket_api)
            functions.update_function_configuration(
                FunctionName=function["FunctionName"], Environment={"Variables": variables}
            )


def own_architecture() -> str:
    """Return Lambda's name for this machine's architecture."""
    return "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"


def without_aws() -> dict[str, str]:
    """Return the environment without AWS's variables.

    DEPLOY_PYTHON makes this Python package the functions, since the emulator runs them on it.
    """
    plain = {name: value for name, value in os.environ.items() if name[:4] != "AWS_"}
    return {**plain, "DEPLOY_PYTHON": sys.executable}


@contextmanager
def emulated(python: str | Path = PYTHON) -> Iterator[str]:
    """Run an emulated AWS that can be deployed to; yield its endpoint.

    Only a Python of `.venv/e2e` can deploy SAM templates.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([python, EMULATE, str(port)], stdin=subprocess.PIPE)
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the emulator ended at once"
                assert time.monotonic() < end
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
