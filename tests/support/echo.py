"""A client of the echo app, which records its events and runs the code in its messages."""

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3

from gateway.configuration import PROJECT
from gateway.server import Running
from tests.support.clients import Client, Socket, configured, eventually, served, whole_lines

API_GATEWAY_ID = re.compile(r"[A-Za-z0-9_-]{15}=")


class Echo(Client):
    """A client of the echo app, with access to the events of its functions."""

    has_herald = False
    events_file: Path

    def __init__(self, running: Running, events_file: Path) -> None:
        super().__init__(running)
        self.events_file = events_file
        self._before = self._all()
        self._earlier_connections = {_connection(event) for event in self._before} - {None}

    def events(self, event_type: str | None = None) -> list[Any]:
        """Return the events since this client was made, without those of earlier connections."""
        return [
            event
            for event in self._all()[len(self._before) :]
            if event.get("type", event["requestContext"].get("eventType")) == event_type
            and _connection(event) not in self._earlier_connections
        ]

    def _all(self) -> list[Any]:
        return [json.loads(line) for line in whole_lines(self.events_file)]

    def disconnects(self, count: int) -> list[Any]:
        """Wait for at least `count` events of `$disconnect`, and return all."""
        eventually(lambda: len(self.events("DISCONNECT")) >= count)
        return self.events("DISCONNECT")

    def run(self, socket: Socket, code: str) -> None:
        """Make the message handler run `code`."""
        socket.connection.send(code)

    def connected(self, query: str = "", **options: Any) -> tuple[Socket, str]:
        """Open a socket. Returns it and the id of its connection."""
        before = len(self.events("CONNECT"))
        socket = self.open(query, **options)
        return socket, self.events("CONNECT")[before]["requestContext"]["connectionId"]

    def management(self) -> Any:
        """Return an SDK client of `@connections`."""
        return boto3.client(
            "apigatewaymanagementapi",
            endpoint_url=self.running.management,
            region_name=self.running.aws["AWS_REGION"],
            aws_access_key_id=self.running.aws["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.running.aws["AWS_SECRET_ACCESS_KEY"],
        )


@contextmanager
def echoing(events_file: Path, **changes: Any) -> Iterator[Echo]:
    """Run a gateway of the echo app with a changed configuration. Yields a client of it."""
    configuration = configured(EVENTS=str(events_file))
    changes = {"project": PROJECT / "tests" / "apps" / "echo", **changes}
    with (
        served(dataclasses.replace(configuration, **changes)) as running,
        closing(Echo(running, events_file)) as client,
    ):
        yield client


def _connection(event: Any) -> str | None:
    identifier: str | None = event["requestContext"].get("connectionId")
    return identifier
