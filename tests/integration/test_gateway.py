"""The local gateway against what real API Gateway does, seen from a client and from a handler."""

import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from botocore.exceptions import ClientError
from websockets.exceptions import ConnectionClosed

from gateway import server
from gateway.configuration import PROJECT
from gateway.server import Running, _listener
from tests.support.clients import Client, configured, eventually, served
from tests.support.echo import Echo, echoing

API_GATEWAY_ID = re.compile(r"[A-Za-z0-9_-]{15}=")


@pytest.fixture
def echo_with(tmp_path: Path) -> Iterator[Callable[..., Echo]]:
    """Starts a gateway of the echo app with the given configuration."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(echoing(tmp_path / "events", **changes))


@pytest.fixture
def echo(echo_gateway: tuple[Running, Path]) -> Iterator[Echo]:
    """A client of the gateway of the echo app that tests share."""
    with closing(Echo(*echo_gateway)) as client:
        yield client


# Events


def test_the_events_of_a_connection(echo: Echo) -> None:
    before = int(time.time() * 1000)
    socket = echo.open(
        "?a=1&b=2&b=3&empty=",
        subprotocols=["x", "y"],
        headers={"User-Agent": "tests", "X-Custom": "1", "X-Forwarded-For": "9.9.9.9"},
    )
    echo.run(socket, "pass")
    eventually(lambda: echo.events("MESSAGE"))
    socket.connection.close()
    eventually(lambda: echo.events("DISCONNECT"))

    [connect] = echo.events("CONNECT")
    context = connect["requestContext"]
    assert connect.keys() == {
        "headers", "multiValueHeaders", "queryStringParameters", "multiValueQueryStringParameters",
        "requestContext", "isBase64Encoded",
    }  # fmt: skip
    assert connect["queryStringParameters"] == {"a": "1", "b": "3", "empty": ""}
    assert connect["multiValueQueryStringParameters"] == {
        "a": ["1"],
        "b": ["2", "3"],
        "empty": [""],
    }
    assert connect["headers"].keys() == {
        "Host", "Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Version", "User-Agent", "X-Amzn-Trace-Id", "X-Custom", "X-Forwarded-For",
        "X-Forwarded-Port", "X-Forwarded-Proto",
    } - {"Sec-WebSocket-Extensions"}  # fmt: skip
    assert connect["headers"]["Sec-WebSocket-Protocol"] == "x, y"
    assert connect["headers"]["X-Forwarded-For"] == "127.0.0.1"
    assert connect["multiValueHeaders"]["X-Custom"] == ["1"]
    assert context.keys() == {
        "routeKey", "authorizer", "eventType", "extendedRequestId", "requestTime",
        "messageDirection", "stage", "connectedAt", "requestTimeEpoch", "identity", "requestId",
        "domainName", "connectionId", "apiId",
    }  # fmt: skip
    assert (context["routeKey"], context["eventType"]) == ("$connect", "CONNECT")
    assert API_GATEWAY_ID.fullmatch(context["connectionId"])
    assert API_GATEWAY_ID.fullmatch(context["requestId"])
    assert context["requestId"] == context["extendedRequestId"]
    assert context["identity"] == {"userAgent": "tests", "sourceIp": "127.0.0.1"}
    assert before <= context["connectedAt"] <= context["requestTimeEpoch"]
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:[\d:]{8} \+0000", context["requestTime"])
    assert context["authorizer"] == {
        "principalId": "somebody", "integrationLatency": 1, "colour": "green", "number": 7,
    }  # fmt: skip

    [message] = echo.events("MESSAGE")
    assert message.keys() == {"requestContext", "body", "isBase64Encoded"}
    assert message["body"] == "pass"
    assert message["requestContext"].keys() == context.keys() | {"messageId"}
    assert message["requestContext"]["routeKey"] == "$default"

    [disconnect] = echo.events("DISCONNECT")
    host = echo.running.http.removeprefix("http://")
    headers = {"Host": host, "x-api-key": "", "X-Forwarded-For": "", "x-restapi": ""}
    assert disconnect["headers"] == headers
    assert disconnect["requestContext"]["disconnectStatusCode"] == 1000
    for event in (message, disconnect):
        same = ("authorizer", "connectedAt", "connectionId", "identity", "domainName", "stage")
        assert all(event["requestContext"][name] == context[name] for name in same)
        assert event["requestContext"]["requestId"] != context["requestId"]


def test_absent_values_are_left_out(echo: Echo) -> None:
    echo.open(user_agent_header=None)
    [connect] = echo.events("CONNECT")
    assert not connect.keys() & {
        "queryStringParameters", "multiValueQueryStringParameters", "body",
    }  # fmt: skip
    assert connect["requestContext"]["identity"] == {"sourceIp": "127.0.0.1"}


def test_the_authorizers_event(echo: Echo) -> None:
    echo.open("?a=1", headers={"Authorization": "x"})
    [event] = echo.events("REQUEST")
    assert re.fullmatch(
        r"arn:aws:execute-api:us-east-1:\d{12}:\w+/ws/\$connect", event["methodArn"]
    )
    assert event["headers"].keys() >= {"Authorization", "Connection", "Upgrade", "content-length"}
    assert event["queryStringParameters"] == {"a": "1"}
    assert event["requestContext"]["eventType"] == "CONNECT"
    assert "authorizer" not in event["requestContext"]


# The handshake


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("authorizer=raise", 500),
        ("authorizer=nonsense", 500),
        ("authorizer=nested", 500),
        ("authorizer=elsewhere", 403),
        ("status=418", 418),
        ("status=302", 302),
        ("connect=1/0", 502),
        ("connect=os._exit(1)", 502),
    ],
)
def test_refused_handshakes(echo: Echo, query: str, status: int) -> None:
    assert echo.refusal(f"?{query}") == status
    assert not echo.events("DISCONNECT")


def test_a_subprotocol_is_what_the_handler_says(echo: Echo) -> None:
    assert echo.open(subprotocols=["a"]).connection.subprotocol is None
    socket = echo.open("?subprotocol=b", subprotocols=["a", "b"])
    assert socket.connection.subprotocol == "b"


def test_nothing_can_be_posted_during_connect(echo: Echo) -> None:
    code = (
        "import boto3, botocore\n"
        "c = boto3.client('apigatewaymanagementapi', endpoint_url="
        "os.environ['HERALD_MANAGEMENT_ENDPOINT'])\n"
        "try:\n"
        "  c.post_to_connection(ConnectionId=raw['requestContext']['connectionId'], Data=b'x')\n"
        "except c.exceptions.GoneException:\n"
        "  query['status'] = '410'\n"
    )
    assert echo.refusal(f"?connect={quote(code)}") == 410


# Messages


def test_a_handlers_own_answer_goes_nowhere(echo: Echo) -> None:
    socket = echo.open()
    echo.run(socket, "pass")
    socket.assert_quiet()


@pytest.mark.parametrize("code", ["1/0", "os._exit(1)", "syntax error"])
def test_a_failing_handler_is_api_gateways_error_frame(echo: Echo, code: str) -> None:
    socket, connection_id = echo.connected()
    error = socket.ask(code)
    assert API_GATEWAY_ID.fullmatch(error.pop("requestId"))
    assert error == {"message": "Internal server error", "connectionId": connection_id}
    assert socket.ask(code)["message"] == "Internal server error"


def test_a_slow_handler_times_out_and_others_do_not_wait(
    echo_with: Callable[..., Echo], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway")
    echo = echo_with(integration_timeout=0.5, function_timeout=1.0)
    slow, quick = echo.open(), echo.open()
    echo.run(slow, "import time; time.sleep(30)")
    assert quick.ask("1/0")["message"] == "Internal server error"
    assert slow.receive()["message"] == "Endpoint request timed out"
    # It is killed when its own time is over, of which nobody but the log is told.
    eventually(lambda: "message failed: Task timed out after 1.00 seconds" in caplog.text)
    assert slow.ask("1/0")["message"] == "Internal server error"


def test_handlers_run_in_parallel(echo: Echo, tmp_path: Path) -> None:
    """Each of three handlers waits until all three run: none would end if they took turns."""
    code = f"""
import pathlib, time, uuid
here = pathlib.Path({str(tmp_path)!r})
(here / f"running-{{uuid.uuid4()}}").touch()
while len(list(here.glob("running-*"))) < 3:
    time.sleep(0.01)
(here / f"done-{{uuid.uuid4()}}").touch()
"""
    socket = echo.open()
    for _ in range(3):
        echo.run(socket, code)
    eventually(lambda: len(list(tmp_path.glob("done-*"))) == 3)


def test_a_crash_hurts_one_invocation_only(echo: Echo, tmp_path: Path) -> None:
    survivor, victim = echo.open(), echo.open()
    done = tmp_path / "done"
    echo.run(survivor, f"import time; time.sleep(1); open({str(done)!r}, 'w')")
    assert victim.ask("os._exit(1)")["message"] == "Internal server error"
    eventually(done.exists)
    survivor.assert_quiet()


def test_what_is_not_text_or_too_large_closes(echo: Echo) -> None:
    binary = echo.open()
    binary.connection.send(b"\0")
    assert binary.closed_with()[0] == 1003
    large_frame = echo.open()
    large_frame.connection.send("x" * (32 * 1024 + 1))
    assert large_frame.closed_with()[0] == 1009
    large_message = echo.open()
    with suppress(ConnectionClosed):  # which may be known before the last fragment is sent
        large_message.connection.send(["x" * 32 * 1024] * 4 + ["x"])
    assert large_message.closed_with()[0] == 1009
    codes = [event["requestContext"]["disconnectStatusCode"] for event in _ended(echo, 3)]
    assert sorted(codes) == [1003, 1009, 1009]


def test_the_largest_frame_and_message_pass(echo: Echo) -> None:
    socket = echo.open()
    socket.connection.send("#" * 32 * 1024)
    socket.connection.send(["#" * 32 * 1024] * 4)
    eventually(lambda: len(echo.events("MESSAGE")) == 2)
    lengths = sorted(len(event["body"]) for event in echo.events("MESSAGE"))
    assert lengths == [32 * 1024, 128 * 1024]


# Endings


def test_idle_and_old_connections_are_closed(echo_with: Callable[..., Echo]) -> None:
    echo = echo_with(idle_timeout=0.6, max_duration=1.5)
    idle, busy = echo.open(), echo.open()
    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        echo.run(busy, "pass")
        time.sleep(0.1)
    assert [event["requestContext"]["disconnectReason"] for event in _ended(echo, 1)] == [
        "Going away"
    ]
    assert idle.closed_with() == busy.closed_with() == (1001, "Going away")


def test_how_a_client_ended_is_told(echo: Echo) -> None:
    for code, reason in ((3001, "because"), (1000, "")):
        echo.open().connection.close(code, reason)
    broken = echo.open()
    broken.connection.socket.close()
    contexts = [event["requestContext"] for event in _ended(echo, 3)]
    told = {(context["disconnectStatusCode"], context["disconnectReason"]) for context in contexts}
    assert told == {(3001, "because"), (1000, ""), (1006, "Connection closed abnormally")}


def _ended(echo: Echo, count: int) -> list[Any]:
    eventually(lambda: len(echo.events("DISCONNECT")) >= count)
    return echo.events("DISCONNECT")


# @connections


def test_connections_by_sdk(echo: Echo) -> None:
    api = echo.management()
    socket, connection_id = echo.connected("?a=1", user_agent_header="tests")
    api.post_to_connection(ConnectionId=connection_id, Data='{"ü": 1}'.encode())
    assert socket.receive() == {"ü": 1}
    described = api.get_connection(ConnectionId=connection_id)
    assert described["Identity"] == {"SourceIp": "127.0.0.1", "UserAgent": "tests"}
    assert described["ConnectedAt"] <= described["LastActiveAt"]
    api.delete_connection(ConnectionId=connection_id)
    assert socket.closed_with() == (1000, "Connection Closed Normally")
    for call in (api.get_connection, api.delete_connection):
        with pytest.raises(api.exceptions.GoneException):
            call(ConnectionId=connection_id)
    with pytest.raises(api.exceptions.GoneException):
        api.post_to_connection(ConnectionId=connection_id, Data=b"x")
    [ended] = _ended(echo, 1)
    assert ended["requestContext"]["disconnectStatusCode"] == 1000
    api.close()


def test_connections_by_http(echo: Echo) -> None:
    socket, connection_id = echo.connected()
    url = f"{echo.running.management}/@connections/"
    for form in (connection_id, quote(connection_id, safe="")):
        answer = httpx.post(url + form, content=b'"hi"')
        assert (answer.status_code, answer.content) == (200, b"")
        assert socket.receive() == "hi"
    encoded = f"{echo.running.management}/%40connections/{quote(connection_id)}"
    assert httpx.get(encoded).json().keys() == {"connectedAt", "identity", "lastActiveAt"}
    answer = httpx.post(url + connection_id, content=b"x" * (128 * 1024 + 1))
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (
        413,
        "PayloadTooLargeException",
    )
    answer = httpx.post(url + "AAAAAAAAAAAAAAA=", content=b"x")
    assert (answer.status_code, answer.content) == (410, b"")
    assert answer.headers["x-amzn-errortype"] == "GoneException"
    answer = httpx.post(url + "nonsense", content=b"x")
    assert (answer.status_code, answer.json()) == (
        400,
        {"message": "Invalid connectionId: nonsense"},
    )
    other_stage = url.replace("/ws/", "/prod/") + connection_id
    assert httpx.post(other_stage, content=b"x").status_code == 403


def test_a_client_that_does_not_read_is_throttled_not_waited_for(echo: Echo) -> None:
    api = echo.management()
    _, slow = echo.connected(max_queue=1)
    _, other = echo.connected()

    def flood() -> None:
        for _ in range(2000):
            api.post_to_connection(ConnectionId=slow, Data=b"x" * 128 * 1024)

    with pytest.raises(ClientError) as refused:
        flood()
    assert refused.value.response["Error"]["Code"] == "LimitExceededException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    api.post_to_connection(ConnectionId=other, Data=b"x")
    api.close()


# REST


def test_the_rest_event_and_response(echo: Echo) -> None:
    answer = echo.http.post("/open/a%20b?x=1&x=2", content=b"\xff\x00", headers={"X-Custom": "1"})
    assert (answer.status_code, answer.text) == (201, "öffen")
    assert answer.headers["x-one"] == "1"
    assert answer.headers.get_list("x-two") == ["a", "b"]
    assert answer.headers["content-type"] == "text/plain"
    [event] = echo.events()
    assert (event["path"], event["resource"]) == ("/open/a%20b", "/open/{name}")
    assert event["multiValueQueryStringParameters"] == {"x": ["1", "2"]}
    assert event["isBase64Encoded"] is True
    assert event["requestContext"]["identity"]["sourceIp"] == "127.0.0.1"
    assert echo.http.get("/open/").status_code == 403


@pytest.mark.parametrize(
    ("token", "status", "body"),
    [
        (None, 401, {"message": "Unauthorized"}),
        ("raise", 500, {"message": None}),
        ("/elsewhere", 403, {"Message": "User is not authorized to access this resource"}),
    ],
)
def test_rest_refusals(echo: Echo, token: str | None, status: int, body: Any) -> None:
    headers = {"Authorization": token} if token else {}
    answer = echo.http.get("/closed", headers=headers)
    assert (answer.status_code, answer.json()) == (status, body)


def test_the_rest_authorizers_context(echo: Echo) -> None:
    context = echo.http.get("/closed", headers={"Authorization": "/closed"}).json()
    assert (context["principalId"], context["colour"]) == ("somebody", "green")


def test_a_rest_function_that_dies_is_502(echo: Echo) -> None:
    answer = echo.http.get("/exit")
    assert (answer.status_code, answer.json()) == (502, {"message": "Internal server error"})
    assert echo.http.get("/open/a").status_code == 201


# Execution environments


def test_a_burst_is_served_by_a_bounded_number_of_processes(
    echo_with: Callable[..., Echo],
) -> None:
    echo = echo_with(concurrency=3)
    with ThreadPoolExecutor(20) as threads:
        sockets = list(threads.map(lambda _: echo.open(), range(20)))
    for opened in sockets:
        echo.run(opened, f"open({str(echo.events_file)!r} + str(os.getpid()), 'w')")
    eventually(lambda: len(echo.events("MESSAGE")) == 20)
    assert 1 <= len(list(echo.events_file.parent.glob("events?*"))) <= 3


def test_messages_are_delivered_wherever_it_listens() -> None:
    """`@connections` is there as well, and not where nothing listens."""
    with served(configured(HOST="127.0.0.2")) as running, closing(Client(running)) as client:
        assert running.management.startswith("http://127.0.0.2:")
        client.connect("bob")
        assert client.report({"users": ["bob"]})["delivered"] == 1


def test_code_reloads_and_sockets_stay(
    echo_with: Callable[..., Echo], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway")
    project = tmp_path / "project"
    shutil.copytree(PROJECT / "tests" / "apps" / "echo", project)
    echo = echo_with(project=project)
    socket = echo.open()
    source = project / "app.py"
    text = source.read_text()

    source.write_text(text.replace("öffen", "neu"))
    eventually(lambda: echo.http.get("/open/a").text == "neu")
    source.write_text("this is no Python")
    eventually(lambda: echo.http.get("/open/a").status_code == 502)
    eventually(lambda: "can't be imported" in caplog.text)
    error = next(line for line in caplog.messages if "can't be imported" in line)
    cause, first, *_ = error.splitlines()
    assert cause.endswith("the app can't be imported: SyntaxError: invalid syntax (app.py, line 1)")
    assert first.strip().startswith(f'File "{source}", line 1')
    source.write_text(text)
    eventually(lambda: echo.http.get("/open/a").text == "öffen")

    assert socket.ask("1/0")["message"] == "Internal server error"


def test_a_client_can_not_write_into_the_terminal(
    herald: Client, caplog: pytest.LogCaptureFixture
) -> None:
    evil = "eve\r\n12:00:00  CONNECT  \x1b[2J\u202e"
    with caplog.at_level("INFO", "gateway"):
        socket = herald.connect(evil)
        socket.connection.close(4000, "\x1b[2Jbye\n")
        herald.http.get("/users/%0A%1B%5B2J")
        eventually(lambda: "DISCONNECT" in caplog.text)
    assert len([line for line in caplog.messages if "eve\\r\\n12:00:00" in line]) >= 2
    assert all(line.isprintable() for line in caplog.messages)


def test_no_answer_waits_for_an_acknowledgement() -> None:
    """Nagle's algorithm (RFC 896) and delayed ones (RFC 1122) would make each REST answer wait."""
    with (
        _listener(configured()) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_stop_waits_for_no_handler_for_long_and_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "STOP_SECONDS", 1)
    with echoing(tmp_path / "events") as echo:
        capfd.readouterr()
        socket, _ = echo.connected()
        echo.run(socket, "import time; time.sleep(30)")
        eventually(lambda: echo.events("MESSAGE"))
    assert capfd.readouterr().err == ""
