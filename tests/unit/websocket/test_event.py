"""The URL that reaches a connection, whatever domain name its client used."""

import pytest

from chalicelib.websocket.event import WebSocketEvent

OWN = "api1.execute-api.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("domain", "api", "region", "host"),
    [
        (OWN, "api1", "eu-west-1", OWN),
        (OWN, "api1", None, OWN),
        ("ws.example.com", "api1", "eu-west-1", OWN),
        ("ws.example.com", "api1", "cn-north-1", "api1.execute-api.cn-north-1.amazonaws.com.cn"),
        ("ws.example.com", "api1", None, "ws.example.com"),
        ("ws.example.com", None, "eu-west-1", "ws.example.com"),
        ("127.0.0.1:8000", "api1", "eu-west-1", "127.0.0.1:8000"),
    ],
)
def test_a_connection_is_reached_by_its_apis_own_name(
    domain: str, api: str | None, region: str | None, host: str
) -> None:
    context = {"domainName": domain, "stage": "prod", **({"apiId": api} if api else {})}
    event = WebSocketEvent({"requestContext": context}, region)
    assert event.endpoint == f"https://{host}/prod"
