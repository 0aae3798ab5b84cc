"""`@connections`, called by the SDK and over plain HTTP."""

from urllib.parse import quote

import httpx
import pytest
from botocore.exceptions import ClientError

from tests.support.echo import Echo


def test_the_sdk_can_post_to_get_and_delete_a_connection(echo: Echo) -> None:
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


def test_wrong_requests_have_api_gateways_errors(echo: Echo) -> None:
    socket, connection_id = echo.connected()
    url = f"{echo.running.management}/@connections/"
    for form in (connection_id, quote(connection_id, safe="")):
        response = httpx.post(url + form, content=b'"hi"')
        assert (response.status_code, response.content) == (200, b"")
        assert socket.receive() == "hi"
    encoded = f"{echo.running.management}/%40connections/{quote(connection_id)}"
    assert httpx.get(encoded).json().keys() == {"connectedAt", "identity", "lastActiveAt"}
    response = httpx.post(url + connection_id, content=b"x" * (128 * 1024 + 1))
    assert (response.status_code, response.headers["x-amzn-errortype"]) == (
        413,
        "PayloadTooLargeException",
    )
    response = httpx.post(url + "AAAAAAAAAAAAAAA=", content=b"x")
    assert (response.status_code, response.content) == (410, b"")
    assert response.headers["x-amzn-errortype"] == "GoneException"
    response = httpx.post(url + "nonsense", content=b"x")
    assert (response.status_code, response.json()) == (
        400,
        {"message": "Invalid connectionId: nonsense"},
    )
    other_stage = url.replace("/ws/", "/prod/") + connection_id
    assert httpx.post(other_stage, content=b"x").status_code == 403


def test_a_client_that_does_not_read_is_429_without_delaying_others(echo: Echo) -> None:
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
