"""Deploys a packaged stage into the emulator, by the template that CloudFormation is given."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from gateway.configuration import PROJECT
from gateway.server import Running
from infra.deploy import Deployment
from infra.stage import Stage
from tests.clients import SECRET

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


class _Session(boto3.Session):
    """The SDK, led to the emulator."""

    endpoint = ""

    def client(self, service: Any, **options: Any) -> Any:
        return super().client(service, endpoint_url=self.endpoint, **options)


class Deployed:
    """A stage in the emulator."""

    def __init__(self, endpoint: str) -> None:
        self.aws = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        self.outputs: dict[str, str] = {}
        self.session = _Session("test", "test", region_name="us-east-1")
        self.session.endpoint = endpoint

    def client(self, service: Any) -> Any:
        return self.session.client(service)

    def api(self, output: str) -> str:
        """Where the emulator has an API: as a path, since its names are no hosts here."""
        return f"{self.aws['AWS_ENDPOINT_URL']}/_aws/execute-api/{self.outputs[output]}/api"

    @property
    def running(self) -> Running:
        websocket = self.api("WebsocketAPIId")
        return Running(
            http=self.api("RestAPIId"),
            websocket=websocket.replace("http://", "ws://"),
            management=websocket,
            aws=self.aws,
        )

    def deploy(self, package: Path, stage: str, **parameters: str) -> None:
        """As `make deploy` does, but for what the emulator lacks."""
        deployment = Deployment(Stage(stage), self.session)
        self.outputs = deployment.deploy(package, parameters, self._for_the_emulator)
        self._tell_where_connections_are()

    def destroy(self, stage: str) -> None:
        """As `make destroy` does."""
        Deployment(Stage(stage), self.session).destroy()

    def _for_the_emulator(self, template: Any) -> Any:
        """The template, less two kinds of resource that the emulator does not have, with the
        settings of the test."""
        resources = template["Resources"]
        for name, resource in list(resources.items()):
            properties = resource["Properties"]
            kind = resource["Type"]
            with_math = kind == "AWS::CloudWatch::Alarm" and "Metrics" in properties
            if kind == "AWS::ApiGatewayV2::Deployment" or with_math:
                del resources[name]
            elif kind == "AWS::Serverless::Function":
                variables = properties["Environment"]["Variables"]
                variables |= {**SETTINGS, "AWS_ENDPOINT_URL": self.aws["AWS_ENDPOINT_URL"]}
        return template

    def _tell_where_connections_are(self) -> None:
        """API Gateway's own name for the API, which an event has, is no host here."""
        functions = self.client("lambda")
        for function in functions.list_functions()["Functions"]:
            variables = function["Environment"]["Variables"]
            variables["HERALD_MANAGEMENT_ENDPOINT"] = self.api("WebsocketAPIId")
            functions.update_function_configuration(
                FunctionName=function["FunctionName"], Environment={"Variables": variables}
            )


@contextmanager
def emulated() -> Iterator[Deployed]:
    """An AWS to deploy to, until the context ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([PYTHON, EMULATE, str(port)], stdin=subprocess.PIPE)
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
        yield Deployed(f"http://127.0.0.1:{port}")
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
