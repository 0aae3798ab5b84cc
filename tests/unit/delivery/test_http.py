"""The transport against a stub of `@connections`."""

import math
import select
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from chalicelib.delivery.http import Completion, HttpTimeouts, Transport, create_trusted_context
from chalicelib.delivery.http_connection import Origin
from chalicelib.delivery.system import SYSTEM, System
from tests.support.stub import Stub, stub

SECONDS = 20.0
Started = tuple["Transport[str]", Origin]


def started(
    endpoint: str, timeouts: HttpTimeouts | None = None, system: System = SYSTEM
) -> Iterator[Started]:
    transport: Transport[str] = Transport(
        create_trusted_context, timeouts=timeouts or HttpTimeouts(), system=system
    )
    origin = Origin(endpoint)
    yield transport, origin
    transport.close([origin])


@pytest.fixture
def to_stub(stubbed: Stub) -> Iterator[Started]:
    yield from started(stubbed.endpoint)


def request(connection_id: str, body: bytes = b"") -> bytes:
    head = f"POST /prod/{connection_id} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def completed(transport: "Transport[str]", number: int) -> list[Completion[str]]:
    """Poll until a number of requests are completed."""
    end = time.monotonic() + SECONDS
    completions: list[Completion[str]] = []
    while len(completions) < number:
        assert time.monotonic() < end
        completions += transport.poll(min(0.1, transport.next_timeout() - time.monotonic()))
    return completions


def exchange(to: Started, *tasks: str, body: bytes = b"") -> list[Completion[str]]:
    """Send requests together; return their completions in the order of the tasks."""
    transport, origin = to
    for task in tasks:
        transport.start(origin, task, request(task, body))
    return sorted(completed(transport, len(tasks)))


# --- Kept-alive connections


def test_connections_are_kept_alive(to_stub: Started, stubbed: Stub) -> None:
    for _ in range(5):
        assert [one.status for one in exchange(to_stub, "a", "b", "c")] == [200] * 3
    assert stubbed.opened == 3


def test_an_idle_connection_that_its_server_closes_is_dropped(
    to_stub: Started, stubbed: Stub
) -> None:
    exchange(to_stub, "a", "b")
    transport, origin = to_stub
    stubbed.close_sockets()
    end = time.monotonic() + SECONDS
    while origin.idle and time.monotonic() < end:
        transport.poll(0.05)
    assert origin.idle == []


def test_a_connection_that_breaks_before_the_response_asks_for_a_resend(
    to_stub: Started, stubbed: Stub
) -> None:
    stubbed.behaviours["b"] = ["close"]
    exchange(to_stub, "a")
    assert exchange(to_stub, "b") == [Completion("b", 0, "connection_failed", resend=True)]


def test_a_new_connection_that_breaks_asks_for_no_resend(to_stub: Started, stubbed: Stub) -> None:
    stubbed.behaviours["a"] = ["close"]
    assert exchange(to_stub, "a") == [Completion("a", 0, "connection_failed", resend=False)]


def test_a_response_that_breaks_off_asks_for_no_resend(to_stub: Started, stubbed: Stub) -> None:
    stubbed.behaviours["b"] = ["half a head"]
    exchange(to_stub, "a")
    assert exchange(to_stub, "b") == [Completion("b", 0, "connection_failed", resend=False)]


@pytest.mark.parametrize(("idle_seconds", "left"), [(60.0, 1), (-10.0, 0)])
def test_connections_that_were_idle_for_too_long_are_closed(
    stubbed: Stub, idle_seconds: float, left: int
) -> None:
    for transport, origin in started(stubbed.endpoint, HttpTimeouts(idle=idle_seconds)):
        exchange((transport, origin), "a")
        transport.close_expired(origin)
        assert len(origin.idle) == left


def test_an_error_response_has_its_type(to_stub: Started, stubbed: Stub) -> None:
    stubbed.behaviours["a"] = ["403 ForbiddenException"]
    assert exchange(to_stub, "a") == [Completion("a", 403, error_type="ForbiddenException")]


# --- Time-outs and wake-ups


def test_a_response_that_does_not_come_times_out(stubbed: Stub) -> None:
    stubbed.behaviours["a"] = ["hang"]
    for to in started(stubbed.endpoint, HttpTimeouts(response=0.1)):
        assert exchange(to, "a") == [Completion("a", 0, "timeout")]


def test_a_name_that_is_not_resolved_in_time_times_out() -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        released.wait(SECONDS)
        return []

    system = SYSTEM._replace(resolve=hang)
    for to in started("http://example.com", HttpTimeouts(connect=0.1), system):
        assert exchange(to, "a") == [Completion("a", 0, "timeout")]
        released.set()


def test_without_requests_there_is_no_next_timeout(to_stub: Started) -> None:
    transport, _ = to_stub
    assert transport.next_timeout() == math.inf


@pytest.mark.timeout(10)
def test_wake_ends_a_poll_that_waits(to_stub: Started) -> None:
    transport, _ = to_stub
    transport.wake()
    assert transport.poll(60.0) == []


def test_cancelled_requests_return_their_tasks_and_are_never_completed(
    to_stub: Started, stubbed: Stub
) -> None:
    transport, origin = to_stub
    stubbed.behaviours["b"] = ["hang"]
    exchange(to_stub, "a")
    transport.start(origin, "b", request("b"))  # on the idle connection
    transport.start(origin, "c", request("c"))  # on one that opens
    completions, cancelled = transport.cancel_all()
    assert (completions, sorted(cancelled)) == ([], ["b", "c"])
    assert transport.poll(0.2) == []


def test_a_response_that_has_arrived_is_not_cancelled(to_stub: Started, stubbed: Stub) -> None:
    transport, origin = to_stub
    exchange(to_stub, "a")
    transport.start(origin, "b", request("b"))
    select.select([origin_socket(transport)], [], [], SECONDS)
    assert transport.cancel_all() == ([Completion("b", 200)], [])
    assert [one.status for one in exchange(to_stub, "c")] == [200]
    assert stubbed.opened == 1


def origin_socket(transport: "Transport[str]") -> Any:
    """Return the socket of the only request."""
    [connection] = transport._busy
    return connection.sock


@pytest.mark.timeout(10)
def test_a_poll_does_not_wait_if_a_request_failed_as_it_started(stubbed: Stub) -> None:
    sockets = iter([SYSTEM.create_socket])

    def create_one(*arguments: int) -> Any:
        for create in sockets:
            return create(*arguments)
        raise OSError("no file descriptors are left")

    stubbed.behaviours["a"] = ["no length"]  # so that it closes the connection
    for to in started(stubbed.endpoint, system=SYSTEM._replace(create_socket=create_one)):
        exchange(to, "a")
        transport, origin = to
        transport.start(origin, "b", request("b"))
        assert transport.poll(60.0) == [Completion("b", 0, "connection_failed")]


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secured(authority: trustme.CA) -> Iterator[Stub]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with stub(context, "localhost") as endpoint:
        yield endpoint


def test_tls_sessions_are_resumed(
    secured: Stub, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    large = b"x" * 128 * 1024
    for to in started(secured.endpoint):
        for tasks in (["first"], [f"c{number}" for number in range(10)]):
            assert {one.status for one in exchange(to, *tasks, body=large)} == {200}
            assert all(secured.received(task) == [large] for task in tasks)
    assert secured.resumed == secured.opened - 1


def test_a_server_with_an_untrusted_certificate_gets_no_request(secured: Stub) -> None:
    for to in started(secured.endpoint):
        assert exchange(to, "a") == [Completion("a", 0, "connection_failed")]
    assert secured.requests == []
