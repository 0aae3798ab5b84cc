"""Handshakes, messages and endings, as a client and a handler see them."""

import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.clients import eventually
from tests.support.echo import API_GATEWAY_ID, Echo


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
def test_a_refused_handshake_has_api_gateways_status(echo: Echo, query: str, status: int) -> None:
    assert echo.refusal(f"?{query}") == status
    assert not echo.events("DISCONNECT")


def test_the_handler_chooses_the_subprotocol(echo: Echo) -> None:
    assert echo.open(subprotocols=["a"]).connection.subprotocol is None
    socket = echo.open("?subprotocol=b", subprotocols=["a", "b"])
    assert socket.connection.subprotocol == "b"


def test_a_post_during_connect_is_410(echo: Echo) -> None:
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


def test_the_result_of_a_message_handler_is_discarded(echo: Echo) -> None:
    socket = echo.open()
    echo.run(socket, "pass")
    socket.assert_quiet()


@pytest.mark.parametrize("code", ["1/0", "os._exit(1)", "syntax error"])
def test_a_failing_handler_sends_api_gateways_error_frame(echo: Echo, code: str) -> None:
    socket, connection_id = echo.connected()
    error = socket.ask(code)
    assert API_GATEWAY_ID.fullmatch(error.pop("requestId"))
    assert error == {"message": "Internal server error", "connectionId": connection_id}
    assert socket.ask(code)["message"] == "Internal server error"


def test_a_slow_handler_times_out_without_delaying_others(
    echo_with: Callable[..., Echo], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway")
    echo = echo_with(integration_timeout=0.5, function_timeout=1.0)
    slow, quick = echo.open(), echo.open()
    echo.run(slow, "import time; time.sleep(30)")
    assert quick.ask("1/0")["message"] == "Internal server error"
    assert slow.receive()["message"] == "Endpoint request timed out"
    # The function is killed at its own time-out, which only the log reports.
    eventually(lambda: "message failed: Task timed out after 1.00 seconds" in caplog.text)
    assert slow.ask("1/0")["message"] == "Internal server error"


def test_binary_and_oversized_frames_close_the_connection(echo: Echo) -> None:
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
    codes = [event["requestContext"]["disconnectStatusCode"] for event in echo.disconnects(3)]
    assert sorted(codes) == [1003, 1009, 1009]


def test_the_largest_frame_and_message_are_accepted(echo: Echo) -> None:
    socket = echo.open()
    socket.connection.send("#" * 32 * 1024)
    socket.connection.send(["#" * 32 * 1024] * 4)
    eventually(lambda: len(echo.events("MESSAGE")) == 2)
    lengths = sorted(len(event["body"]) for event in echo.events("MESSAGE"))
    assert lengths == [32 * 1024, 128 * 1024]


def test_idle_and_old_connections_are_closed(echo_with: Callable[..., Echo]) -> None:
    echo = echo_with(idle_timeout=0.6, max_duration=1.5)
    idle, busy = echo.open(), echo.open()
    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        echo.run(busy, "pass")
        time.sleep(0.1)
    assert [event["requestContext"]["disconnectReason"] for event in echo.disconnects(1)] == [
        "Going away"
    ]
    assert idle.closed_with() == busy.closed_with() == (1001, "Going away")


def test_disconnect_reports_how_the_client_closed(echo: Echo) -> None:
    for code, reason in ((3001, "because"), (1000, "")):
        echo.open().connection.close(code, reason)
    broken = echo.open()
    broken.connection.socket.close()
    contexts = [event["requestContext"] for event in echo.disconnects(3)]
    told = {(context["disconnectStatusCode"], context["disconnectReason"]) for context in contexts}
    assert told == {(3001, "because"), (1000, ""), (1006, "Connection closed abnormally")}
