"""The endpoints that the console's page calls; the page itself is tested in a browser."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from starlette.applications import Starlette

from gateway.api.event_stream import EventStream
from gateway.api.fault_injection import FaultInjection
from gateway.api.sockets import Sockets
from gateway.console.routes import Console
from tests.support.clients import SECRET, Client, configured, eventually, served, token

ALICE = {"user": "alice", "scope": "ws:connect", "tenant": "acme", "groups": ["a"], "seconds": 60}


def test_the_page_and_its_files_are_served(herald: Client) -> None:
    page = herald.http.get("/console")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert "<script>" not in page.text
    for path, kind in (
        ("main.js", "javascript"),
        ("style.css", "css"),
        ("icon.svg", "svg"),
        ("client/herald.js", "javascript"),
    ):
        response = herald.http.get(f"/console/{path}")
        assert response.status_code == 200
        assert kind in response.headers["Content-Type"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("nothing.js", "..%2fapp.py", "%2e%2e/app.py"):
        assert herald.http.get(f"/console/{path}").status_code == 404


def test_a_token_has_the_claims_that_the_page_asks_for(herald: Client) -> None:
    made = herald.http.post("/console/token", json=ALICE).json()["token"]
    claims = jwt.decode(made, OctKey.import_key(SECRET)).claims
    assert claims.pop("exp") - claims.pop("iat") == 60
    assert claims == {"sub": "alice", "scope": "ws:connect", "tenant": "acme", "groups": ["a"]}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({**ALICE, "user": ""}, "user must have 1 to 128 characters"),
        ({**ALICE, "seconds": 0}, "seconds must be from 1 to 604800"),
        ({**ALICE, "seconds": True}, "seconds must be"),
        ({**ALICE, "admin": True}, "admin is unknown"),
        ([], "must be an object"),
    ],
)
def test_a_wrong_request_for_a_token_is_400_with_the_reason(
    herald: Client, body: Any, error: str
) -> None:
    response = herald.http.post("/console/token", json=body)
    assert response.status_code == 400
    assert error in response.json()["message"]


def test_without_a_secret_a_request_for_a_token_is_400(herald_with: Callable[..., Client]) -> None:
    response = herald_with(HERALD_JWT_SECRET="").http.post("/console/token", json=ALICE)
    assert response.status_code == 400
    assert "only your identity provider can make a token" in response.json()["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},  # another site's name that resolves to this machine
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
)
def test_other_origins_are_refused(herald: Client, headers: dict[str, str]) -> None:
    for method, path in (
        ("GET", "/console"),
        ("POST", "/console/token"),
        ("GET", "/console/events"),
        ("PUT", "/console/handshakes"),
    ):
        response = herald.http.request(method, path, headers=headers, json=ALICE)
        assert response.status_code == 403
        assert "token" not in response.json()
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(("address", "status"), [("127.0.0.1", 200), ("10.0.0.9", 403)])
def test_other_machines_are_refused(address: str, status: int) -> None:
    """The gateway may listen on the network; the console still answers this machine only."""
    console = Console(
        configured(HOST="0.0.0.0"),
        Sockets(),
        event_stream=EventStream(),
        faults=FaultInjection(),
    )

    async def ask() -> httpx.Response:
        app = Starlette(routes=console.routes)
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.1:8000") as http:
            return await http.post("/console/token", json=ALICE)

    response = asyncio.run(ask())
    assert response.status_code == status
    assert ("token" in response.json()) == (status == 200)


def test_the_event_stream_shows_what_happens(herald: Client) -> None:
    events: list[Any] = []
    url = f"{herald.running.http}/console/events"
    with httpx.stream("GET", url, timeout=10) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))

        def until(kind: str, **details: Any) -> Any:
            while True:
                for event in events:
                    if event["kind"] == kind and details.items() <= event.items():
                        return event
                events.extend(json.loads(next(lines).removeprefix("data: ")))

        before = until("start")["connections"]
        with herald.open("?card=c1&token=" + token("feeder")).connection:
            connected = until("connect", card="c1", status=101)
            assert connected["connections"] >= before + 1
            assert herald.report({"users": ["feeder"]})["delivered"] == 1
            delivered = until("delivery", connectionId=connected["connectionId"])
            assert delivered["status"] == 200
            assert delivered["bytes"] > 0
        ended = until("disconnect", connectionId=connected["connectionId"])
        assert ended["code"] == 1000
        posted = until("rest", path="/messages")
        assert (posted["method"], posted["status"]) == ("POST", 200)
        assert posted["ms"] > 0
        assert "token" not in json.dumps(events)


def test_handshakes_are_refused_while_that_fault_is_on(
    herald_with: Callable[..., Client],
) -> None:
    herald = herald_with()
    for status in (401, 503):
        assert herald.http.put("/console/handshakes", json={"status": status}).status_code == 204
        assert herald.refusal(f"?token={token('pat')}") == status
    assert herald.http.put("/console/handshakes", json={}).status_code == 204
    herald.open(f"?token={token('pat')}")
    wrong = herald.http.put("/console/handshakes", json={"status": 200})
    assert wrong.status_code == 400
    assert wrong.json()["message"].startswith("status must be one of 401, 403")


def test_a_delivery_fault_can_be_switched_on_and_off(herald: Client) -> None:
    socket = herald.connect("spoilt")
    path = f"/console/connections/{herald.connection_id('spoilt')}"
    assert herald.http.put(path, json={"delayMs": 300}).status_code == 204
    began = time.monotonic()
    assert herald.report({"users": ["spoilt"]}, "late")["delivered"] == 1
    assert time.monotonic() - began >= 0.3
    assert herald.http.put(path, json={}).status_code == 204
    assert socket.messages() == ["late"]
    assert herald.http.put(path, json={"delayMs": -1}).status_code == 400
    assert herald.http.put(path, json={"status": 410}).status_code == 204
    assert herald.report({"users": ["spoilt"]})["gone"] == 1


def test_a_connection_can_be_expired(herald: Client) -> None:
    socket = herald.connect("cut")
    path = f"/console/connections/{herald.connection_id('cut')}"
    assert herald.http.delete(path).status_code == 204
    assert socket.closed_with() == (1001, "Going away")
    eventually(lambda: not herald.connections("cut"))
    assert herald.http.delete(path).status_code == 404


def test_a_watcher_does_not_delay_a_stop() -> None:
    """The gateway would wait three seconds for a response that doesn't end."""
    with served(configured()) as running:
        stream = httpx.stream("GET", f"{running.http}/console/events", timeout=10)
        lines = stream.__enter__().iter_lines()
        assert next(lines).startswith("data: ")
    assert [line for line in lines if line.startswith("data: ")] == []
    stream.__exit__(None, None, None)
