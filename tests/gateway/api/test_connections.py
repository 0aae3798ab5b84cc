"""`@connections`, called by the SDK and over plain HTTP."""

from urllib.parse import quote

import httpx
import pytest
from botocore.exceptions import ClientError

from tests.support.echo import Echo
from tests.support.signing import Signed


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


def test_ids_and_the_at_sign_may_be_url_encoded(echo: Echo) -> None:
    socket, connection_id = echo.connected()
    for form in (connection_id, quote(connection_id, safe="")):
        response = httpx.post(_url(echo, form), content=b'"hi"', auth=_signed(echo))
        assert (response.status_code, response.content) == (200, b"")
        assert socket.receive() == "hi"
    encoded = f"{echo.running.management}/%40connections/{quote(connection_id)}"
    described = httpx.get(encoded, auth=_signed(echo))
    assert described.json().keys() == {"connectedAt", "identity", "lastActiveAt"}


def _signed(echo: Echo) -> Signed:
    return Signed(echo.running.aws)


def _url(echo: Echo, connection_id: str) -> str:
    return f"{echo.running.management}/@connections/{connection_id}"


@pytest.mark.parametrize(
    ("connection_id", "status", "error_type", "body"),
    [
        ("AAAAAAAAAAAAAAA=", 410, "GoneException", ""),
        (
            "nonsense",
            400,
            "BadRequestException",
            '{"message": "Invalid connectionId: nonsense"}',
        ),
    ],
)
def test_a_wrong_id_has_api_gateways_error(
    echo: Echo, connection_id: str, status: int, error_type: str, body: str
) -> None:
    response = httpx.post(_url(echo, connection_id), content=b"x", auth=_signed(echo))
    assert (response.status_code, response.text) == (status, body)
    assert response.headers["x-amzn-errortype"] == error_type


def test_a_message_over_128_kb_is_413_and_another_stage_403(echo: Echo) -> None:
    _, connection_id = echo.connected()
    url = _url(echo, connection_id)
    response = httpx.post(url, content=b"x" * (128 * 1024 + 1), auth=_signed(echo))
    assert response.status_code == 413
    assert response.headers["x-amzn-errortype"] == "PayloadTooLargeException"
    other_stage = httpx.post(url.replace("/ws/", "/prod/"), content=b"x", auth=_signed(echo))
    assert other_stage.status_code == 403
    assert other_stage.json() == {"message": "Forbidden"}


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
