"""The events that functions get, field by field, as captures of real ones have them."""

import re
import time

from tests.support.clients import eventually
from tests.support.echo import API_GATEWAY_ID, Echo


def test_the_events_of_a_connection_have_api_gateways_fields(echo: Echo) -> None:
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


def test_absent_values_are_left_out_of_an_event(echo: Echo) -> None:
    echo.open(user_agent_header=None)
    [connect] = echo.events("CONNECT")
    assert not connect.keys() & {
        "queryStringParameters", "multiValueQueryStringParameters", "body",
    }  # fmt: skip
    assert connect["requestContext"]["identity"] == {"sourceIp": "127.0.0.1"}


def test_the_authorizer_gets_a_request_event(echo: Echo) -> None:
    echo.open("?a=1", headers={"Authorization": "x"})
    [event] = echo.events("REQUEST")
    assert re.fullmatch(
        r"arn:aws:execute-api:us-east-1:\d{12}:\w+/ws/\$connect", event["methodArn"]
    )
    assert event["headers"].keys() >= {"Authorization", "Connection", "Upgrade", "content-length"}
    assert event["queryStringParameters"] == {"a": "1"}
    assert event["requestContext"]["eventType"] == "CONNECT"
    assert "authorizer" not in event["requestContext"]
