"""`@connections`, called by the SDK and over plain HTTP."""

from urllib.parse import quote

import httpx
import pytest
from botocore.exceptions import ClientError

from tests.support.echo import Echo


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
    [ended] = echo.disconnects(1)
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
