"""Two regions over global tables: a message from either region reaches connections in both.

Each region's `@connections` is a stub under API Gateway's host name, with a certificate for it. It
must get only requests for its own connections, signed for its region. One emulator stands in for
the global tables.
"""

import datetime
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

import pytest
import trustme
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs
from chalicelib.delivery.sender import Sender
from chalicelib.delivery.system import System
from chalicelib.runtime.aws import Credentials
from chalicelib.runtime.deadlines import Deadline
from chalicelib.websocket.event import WebSocketEvent
from tests.support.stub import Stub, stub
from tests.support.world import Aws, Herald, World

CREDENTIALS = Credentials("AK", "secret")
JSON = {"content-type": "application/json"}
SENDER = Principal(
    "alice", 10**12, scopes=frozenset({Scope.MESSAGES_SEND, Scope.MESSAGES_BROADCAST})
)
HERE, THERE = "us-east-1", "eu-central-1"


class Region(NamedTuple):
    """The deployment and the `@connections` stub of one region."""

    name: str
    stubbed: Stub
    herald: Herald

    @property
    def host(self) -> str:
        return host_in(self.name)

    def connect(self, connection_id: str, user: str, domain: str | None = None) -> None:
        """Open a connection through the API's default host name or a custom domain."""
        principal = Principal(user, 10**12, groups=("team",))
        context = {
            "connectionId": connection_id,
            "connectedAt": int(time.time() * 1000),
            "domainName": domain or self.host,
            "apiId": self.host.partition(".")[0],
            "stage": "prod",
            "identity": {"sourceIp": "127.0.0.1"},
            "authorizer": principal.to_context(),
        }
        event = {"requestContext": context, "headers": {}}
        self.herald.lifecycle.on_connect(WebSocketEvent(event, self.name))

    def assert_signed(self) -> None:
        """Assert that each request has the signature that botocore makes for this region."""
        for (connection_id, body), headers in zip(
            self.stubbed.requests, self.stubbed.headers, strict=True
        ):
            sent = {name.lower(): value for name, value in headers.items()}
            path = f"/prod/@connections/{connection_id}".replace("@", "%40").replace("=", "%3D")
            request = AWSRequest("POST", f"https://{self.host}{path}", data=body)
            moment = datetime.datetime.strptime(sent["x-amz-date"], "%Y%m%dT%H%M%SZ")
            signed_by = BotoCredentials(CREDENTIALS.access_key, CREDENTIALS.secret_key)
            with mock.patch("botocore.auth.get_current_datetime", return_value=moment):
                SigV4Auth(signed_by, "execute-api", self.name).add_auth(request)
            assert sent["authorization"] == request.headers["Authorization"]


def host_in(region: str) -> str:
    return f"api-in-{region}.execute-api.{region}.amazonaws.com"


@pytest.fixture
def regions(
    life: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[World, Region, Region]]:
    authority = trustme.CA()
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    world = World()
    ports: dict[str, int] = {}

    def resolve(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        return socket.getaddrinfo("127.0.0.1", ports[host], *arguments, **options)

    system = System(resolve=resolve)
    with ExitStack() as stack:
        found = []
        for name in (HERE, THERE):
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(host_in(name)).configure_cert(tls)
            stubbed = stack.enter_context(stub(tls, host_in(name)))
            ports[host_in(name)] = urlsplit(stubbed.endpoint).port or 0
            delivery = stack.enter_context(
                closing(Sender(lambda: CREDENTIALS, region=name, system=system))
            )
            aws = Aws(life, world)
            herald = Herald(aws, world, inline=3, delivery=delivery)
            found.append(Region(name, stubbed, herald))
        yield world, found[0], found[1]


def post(region: Region, body: Any) -> Any:
    reply = region.herald.submissions.submit(SENDER, JSON, json.dumps(body), Deadline.after(20.0))
    return json.loads(reply.body)["messages"][0]


@pytest.mark.parametrize("domain", [None, "ws.example.com"])
def test_a_message_reaches_both_regions_from_either(
    regions: tuple[World, Region, Region], domain: str | None
) -> None:
    _, here, there = regions
    here.connect("AAAAAAAAAAAAAAA=", "bob", domain)
    there.connect("BBBBBBBBBBBBBBB=", "bob", domain)
    there.connect("CCCCCCCCCCCCCCC=", "carol", domain)
    for sender in (here, there):
        for to in ({"users": ["bob", "carol"]}, {"groups": ["team"]}, {"all": True}):
            report = post(sender, {"to": to, "data": "hello"})
            assert (report["recipients"], report["delivered"]) == (3, 3)
    assert here.stubbed.counts() == {"AAAAAAAAAAAAAAA=": 6}
    assert there.stubbed.counts() == {"BBBBBBBBBBBBBBB=": 6, "CCCCCCCCCCCCCCC=": 6}
    for region in (here, there):
        region.assert_signed()


def test_a_worker_of_one_region_delivers_to_the_other(
    regions: tuple[World, Region, Region],
) -> None:
    world, here, there = regions
    for number in range(3):
        here.connect(f"AAAAAAAAAAAAAA{number}=", f"user-{number}")
        there.connect(f"BBBBBBBBBBBBBB{number}=", f"user-{number}")
    queued = post(here, {"to": {"all": True}, "data": "hello"})
    assert queued["queued"]
    for record in world.queue:
        record["attributes"]["ApproximateReceiveCount"] = "1"
    assert there.herald.worker.work(world.queue, Deadline.after(20.0)) == []
    progress = here.herald.progress.of(queued["id"], SENDER, EpochMs(world.now))
    assert (progress["recipients"], progress["delivered"], progress["done"]) == (6, 6, True)
    assert set(here.stubbed.counts()) == {f"AAAAAAAAAAAAAA{number}=" for number in range(3)}
    assert set(there.stubbed.counts()) == {f"BBBBBBBBBBBBBB{number}=" for number in range(3)}
    for region in (here, there):
        region.assert_signed()
