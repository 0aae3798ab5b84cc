"""The echo app behind a gateway: what its functions were given, and what they are told to do."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3

from gateway.configuration import PROJECT
from tests.clients import Client, Socket, configured, served, whole_lines


class Echo(Client):
    """A client of the echo app, and the events that its functions got."""

    has_herald = False
    events_file: Path

    def events(self, event_type: str | None = None) -> list[Any]:
        events = [json.loads(line) for line in whole_lines(self.events_file)]
        return [
            event
            for event in events
            if event.get("type", event["requestContext"].get("eventType")) == event_type
        ]

    def run(self, socket: Socket, code: str) -> None:
        """Have the message handler run `code`."""
        socket.connection.send(code)

    def connected(self, query: str = "", **options: Any) -> tuple[Socket, str]:
        """A socket, and the id of its connection."""
        before = len(self.events("CONNECT"))
        socket = self.open(query, **options)
        return socket, self.events("CONNECT")[before]["requestContext"]["connectionId"]

    def management(self) -> Any:
        return boto3.client(
            "apigatewaymanagementapi",
            endpoint_url=self.running.management,
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )


@contextmanager
def echoing(events_file: Path, **changes: Any) -> Iterator[Echo]:
    """A client of the echo app in a gateway with the given configuration."""
    configuration = configured(EVENTS=str(events_file))
    changes = {"project": PROJECT / "tests" / "apps" / "echo", **changes}
    with (
        served(dataclasses.replace(configuration, **changes)) as running,
        closing(Echo(running)) as client,
    ):
        client.events_file = events_file
        yield client
