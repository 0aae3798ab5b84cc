"""A page of another site, open in the developer's browser, can do nothing to a running gateway.

Its requests are those that a browser sends without asking first: simple ones, preflights and
handshakes. A site may also resolve its own name to 127.0.0.1 (DNS rebinding), and then its requests
are not even cross-origin.
"""

import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from botocore.exceptions import ClientError

from gateway.aws.emulator import client
from gateway.server import Running
from tests.support.clients import Client, token
from tests.support.signing import Signed

EVIL = "https://evil.example"
FROM_EVIL = {"Origin": EVIL, "Content-Type": "text/plain"}
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
SCAN = {"X-Amz-Target": "DynamoDB_20120810.Scan", "Content-Type": "application/x-amz-json-1.0"}
GUESSED = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_REGION": "r"}
PATHS = ("/health", "/messages", "/console", "/console/token", "/nothing", "/ws/@connections/x")


def connection_url(herald: Client, user: str) -> str:
    return f"{herald.running.management}/@connections/{quote(herald.connection_id(user))}"


def handshake(herald: Client, **headers: str) -> httpx.Response:
    return herald.http.get("/ws", headers={**HANDSHAKE, **headers})


def assert_unreadable(response: httpx.Response, status: int) -> None:
    """Check the status, and that a page of another origin can't read the response."""
    assert response.status_code == status, response.text
    assert "access-control-allow-origin" not in response.headers


# --- Without a token


def test_a_page_without_a_token_gets_401(herald: Client) -> None:
    body = '{"to": {"all": true}, "data": 1}'
    json = {"Origin": EVIL, "Content-Type": "application/json"}
    forged = {**json, "Authorization": f"Bearer {token(key='k' * 32)}"}
    for headers in (json, forged):
        assert herald.http.post("/messages", content=body, headers=headers).status_code == 401
        for path in ("/users/alice", "/users/alice/connections", "/keys"):
            assert herald.http.get(path, headers=headers).status_code == 401
        assert handshake(herald, **headers).status_code == 401
    assert handshake(herald, Origin=EVIL).status_code == 401


def test_a_preflight_to_the_console_allows_nothing(herald: Client) -> None:
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "PUT"}
    for path in ("token", "events", "handshakes", "connections/AAAAAAAAAAAAAAA="):
        response = herald.http.options(f"/console/{path}", headers=asked)
        assert_unreadable(response, 405)


# --- @connections


def test_a_page_can_neither_post_to_nor_read_nor_close_a_connection(herald: Client) -> None:
    with closing(herald.connect("mallorys-target").connection):
        url = connection_url(herald, "mallorys-target")
        for method in ("POST", "GET", "DELETE"):
            response = httpx.request(method, url, headers=FROM_EVIL, content=b"{}")
            assert_unreadable(response, 403)
            assert response.json() == {"message": "Missing Authentication Token"}
            assert response.headers["x-amzn-errortype"] == "MissingAuthenticationTokenException"
        assert httpx.options(url, headers=FROM_EVIL).status_code == 405
        assert herald.report({"users": ["mallorys-target"]})["delivered"] == 1


def test_a_refused_request_is_logged_with_what_helps(
    herald: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway")
    herald.http.post("/ws/@connections/AAAAAAAAAAAAAAA=", content=b"{}")
    herald.http.get("/console/\u2028", headers={b"Host": b"evil.example\x9b"})
    [unsigned, foreign] = [line for line in caplog.messages if line.startswith("REFUSED")]
    assert "MissingAuthenticationTokenException" in unsigned
    assert "AWS_CONFIG_FILE=.herald/aws.config" in unsigned
    assert "evil.example" in foreign
    assert foreign.isprintable()


def test_connections_are_not_revealed_to_requests_without_a_signature(herald: Client) -> None:
    for connection_id in ("AAAAAAAAAAAAAAA=", "nonsense"):
        url = f"{herald.running.management}/@connections/{connection_id}"
        assert httpx.get(url).status_code == 403


def test_credentials_of_another_gateway_are_refused(
    herald: Client, herald_with: Callable[..., Client]
) -> None:
    url = f"{herald.running.management}/@connections/AAAAAAAAAAAAAAA="
    other = herald_with().running.aws
    assert httpx.get(url, auth=Signed(herald.running.aws)).status_code == 410
    for aws in (other, GUESSED):
        response = httpx.get(url, auth=Signed(aws))
        assert response.status_code == 403
        assert response.headers["x-amzn-errortype"] == "UnrecognizedClientException"


# --- The emulated services


def emulator_of(running: Running) -> str:
    return running.aws["AWS_ENDPOINT_URL"]


def test_a_page_can_not_call_the_emulated_services(herald: Client) -> None:
    url = emulator_of(herald.running)
    scan = '{"TableName": "herald-connections"}'
    assert_unreadable(httpx.post(url, headers={**FROM_EVIL, **SCAN}, content=scan), 403)
    form = {"Action": "ListQueues", "Version": "2012-11-05"}
    assert_unreadable(httpx.post(url, headers={"Origin": EVIL}, data=form), 403)
    assert_unreadable(httpx.get(url, headers={"Origin": EVIL}, params=form), 403)


def test_a_preflight_to_the_emulated_services_allows_nothing(herald: Client) -> None:
    asked = {
        "Origin": EVIL,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-amz-target",
        "Access-Control-Request-Private-Network": "true",
    }
    response = httpx.options(emulator_of(herald.running), headers=asked)
    assert_unreadable(response, 403)
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_the_emulated_services_open_no_websocket(herald: Client) -> None:
    url = f"{emulator_of(herald.running)}/_aws/execute-api/a/b"
    assert httpx.get(url, headers={**HANDSHAKE, "Origin": EVIL}).status_code == 403


def test_a_request_that_breaks_off_is_not_carried_out(herald: Client) -> None:
    """Its signature is right, but a part of the body is missing."""
    aws, url = herald.running.aws, emulator_of(herald.running)
    body = b'{"TableName": "herald-connections"}'
    request = httpx.Request("POST", url, headers={**SCAN, "Connection": "close"}, content=body)
    next(Signed(aws, "dynamodb").auth_flow(request))
    lines = [b"POST / HTTP/1.1", *(b": ".join(header) for header in request.headers.raw), b"", b""]
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as broken:
        broken.sendall(b"\r\n".join(lines) + body[:-1])
        broken.shutdown(socket.SHUT_WR)
        assert b"herald" not in broken.makefile("rb").read()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/_ministack/health"),
        ("POST", "/_ministack/config"),
        ("POST", "/_ministack/reset"),
        ("GET", "/_localstack/health"),
        ("GET", "/health"),
    ],
)
def test_the_emulators_own_endpoints_answer_nobody(herald: Client, method: str, path: str) -> None:
    url = emulator_of(herald.running) + path
    assert_unreadable(httpx.request(method, url, headers={"Origin": EVIL}), 403)
    own = Signed(herald.running.aws, "dynamodb")
    assert httpx.request(method, url, auth=own).status_code == 403


def test_a_signed_call_has_no_cors_headers(herald: Client) -> None:
    response = httpx.post(
        emulator_of(herald.running),
        headers={**SCAN, "Origin": EVIL},
        content='{"TableName": "herald-connections"}',
        auth=Signed(herald.running.aws, "dynamodb"),
    )
    assert_unreadable(response, 200)
    assert "Items" in response.json()
    assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("service", ["dynamodb", "sqs", "sns", "secretsmanager"])
def test_an_sdk_with_other_credentials_is_told_where_the_right_ones_are(
    herald: Client, service: Any
) -> None:
    aws = {**herald.running.aws, "AWS_SECRET_ACCESS_KEY": "guessed"}
    unknown = {**aws, "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE"}
    call = {
        "dynamodb": "list_tables",
        "sqs": "list_queues",
        "sns": "list_topics",
        "secretsmanager": "list_secrets",
    }[service]
    for variables, code in (
        (aws, "InvalidSignatureException"),
        (unknown, "UnrecognizedClientException"),
    ):
        with closing(client(service, variables)) as sdk, pytest.raises(ClientError) as refused:
            getattr(sdk, call)()
        error = refused.value.response["Error"]
        assert error["Code"] == code
        assert "AWS_CONFIG_FILE=.herald/aws.config" in error["Message"]


# --- A name that the site's DNS server resolves to this machine


def test_a_request_for_another_host_is_refused_everywhere(herald: Client) -> None:
    port = urlsplit(herald.running.http).port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "8.8.8.8"):
        bearer = {"Host": host, "Authorization": f"Bearer {token()}"}
        for path in PATHS:
            response = herald.http.get(path, headers=bearer)
            assert_unreadable(response, 403)
            assert response.headers["x-amzn-errortype"] == "ForbiddenException"
        assert herald.http.options("/messages", headers=bearer).status_code == 403
        assert handshake(herald, **bearer).status_code == 403
    refused = herald.http.get("/health", headers={"Host": f"evil.example:{port}"})
    assert refused.json()["message"] == (
        f"This gateway doesn't answer for the host 'evil.example:{port}'; use"
        f" http://127.0.0.1:{port} or start it with GATEWAY_ALLOWED_HOSTS=evil.example"
    )


def test_a_signature_for_another_host_is_refused(herald: Client) -> None:
    evil = {"Host": "evil.example"}
    url = f"{herald.running.management}/@connections/AAAAAAAAAAAAAAA="
    assert httpx.get(url, headers=evil, auth=Signed(herald.running.aws)).status_code == 403
    response = httpx.post(
        emulator_of(herald.running),
        headers={**SCAN, **evil},
        content='{"TableName": "herald-connections"}',
        auth=Signed(herald.running.aws, "dynamodb"),
    )
    assert_unreadable(response, 403)
    assert "evil.example" in response.json()["message"]


@pytest.mark.parametrize("name", ["localhost", "herald.localhost", "127.0.0.1", "[::1]"])
def test_a_request_for_this_machine_is_answered(herald: Client, name: str) -> None:
    port = urlsplit(herald.running.http).port
    for host in (name, f"{name}:{port}", f"{name}:80"):
        assert herald.http.get("/health", headers={"Host": host}).status_code == 200
        headers = {"Host": host, "Authorization": f"Bearer {token('hosted')}"}
        assert handshake(herald, **headers).status_code == 101


# --- A gateway that listens on the network


@pytest.fixture
def public(herald_with: Callable[..., Client]) -> Client:
    """A client of a gateway on all addresses, which also answers for a name in the network."""
    herald = herald_with(HOST="0.0.0.0", GATEWAY_ALLOWED_HOSTS="laptop.example, other.example")
    assert urlsplit(herald.running.http).hostname == "0.0.0.0"
    return herald


def test_on_the_network_only_allowed_names_are_answered(public: Client) -> None:
    for host, status in (
        ("laptop.example", 200),
        ("Laptop.example:8000", 200),
        ("other.example", 200),
        ("0.0.0.0", 200),
        ("localhost", 200),
        ("evil.example", 403),
    ):
        assert public.http.get("/health", headers={"Host": host}).status_code == status


def test_on_the_network_the_console_makes_no_tokens(public: Client) -> None:
    """A tunnel under an allowed name ends on this machine, so its requests seem to come from it."""
    for host, status in (("laptop.example", 403), ("localhost", 200)):
        response = public.http.post("/console/token", headers={"Host": host}, json={"user": "a"})
        assert response.status_code == status


def test_the_emulated_services_answer_for_an_allowed_host(public: Client) -> None:
    """A container reaches them under another name."""
    for host, status in (("other.example", 200), ("evil.example", 403)):
        response = httpx.post(
            emulator_of(public.running),
            headers={**SCAN, "Host": host},
            content='{"TableName": "herald-connections"}',
            auth=Signed(public.running.aws, "dynamodb"),
        )
        assert response.status_code == status


def test_on_the_network_the_emulated_services_are_not(public: Client) -> None:
    """Only this machine reaches them, at one address."""
    port = urlsplit(emulator_of(public.running)).port
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_on_the_network_connections_still_need_a_signature(public: Client) -> None:
    with closing(public.connect("remote").connection):
        assert public.report({"users": ["remote"]})["delivered"] == 1
        assert httpx.post(connection_url(public, "remote"), content=b"{}").status_code == 403
