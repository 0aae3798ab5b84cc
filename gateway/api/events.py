"""The events that API Gateway sends to Lambda, field by field.

They follow captures of real events, and
https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-mapping-template-reference.html
https://docs.aws.amazon.com/lambda/latest/dg/services-apigateway.html
"""

import base64
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from gateway.aws.variables import ACCOUNT, REGION

WEBSOCKET_API = "herald0ws0"
WEBSOCKET_STAGE = "ws"
REST_API = "herald0api"
REST_STAGE = "api"

_CANONICAL_NAMES = {
    name.lower(): name
    for name in (
        "Sec-WebSocket-Extensions",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Version",
        "X-Amzn-Trace-Id",
        "DNT",
        "TE",
    )
}

Headers = Sequence[tuple[str, str]]


def new_id() -> str:
    """Return an id of API Gateway's form: 16 characters of URL-safe base64, the last one `=`."""
    return base64.urlsafe_b64encode(secrets.token_bytes(11)).decode()


def canonical_headers(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Return a request's headers with their names in canonical case."""
    return [
        (_canonical_name(name.decode("latin-1")), value.decode("latin-1")) for name, value in raw
    ]


def _canonical_name(name: str) -> str:
    return _CANONICAL_NAMES.get(name.lower(), "-".join(word.title() for word in name.split("-")))


def _multi_value(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def _joined(pairs: Headers) -> dict[str, str]:
    return {name: ", ".join(values) for name, values in _multi_value(pairs).items()}


def _request_time(seconds: float) -> str:
    return time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(seconds))


def _forwarded(source_ip: str, port: int, scheme: str) -> Headers:
    return [
        ("X-Amzn-Trace-Id", f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)}"),
        ("X-Forwarded-For", source_ip),
        ("X-Forwarded-Port", str(port)),
        ("X-Forwarded-Proto", scheme),
    ]


def _without_forwarded(headers: Headers) -> Headers:
    """Drop the headers that API Gateway writes itself, since a client could forge them."""
    return [pair for pair in headers if not pair[0].startswith(("X-Forwarded-", "X-Amzn-Trace"))]


@dataclass(slots=True, kw_only=True)
class WebSocketContext:
    """API Gateway's state of one connection; it creates each of the connection's events."""

    stage: str
    domain_name: str
    port: int
    headers: Headers
    query: str
    source_ip: str
    connection_id: str = field(default_factory=new_id)
    connected_at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    authorizer: dict[str, Any] | None = None

    @property
    def method_arn(self) -> str:
        """The ARN that an authorizer's policy must allow."""
        return f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{WEBSOCKET_API}/{self.stage}/$connect"

    def connect(self) -> dict[str, Any]:
        """Return the event of `$connect`."""
        kept = [
            pair
            for pair in _without_forwarded(self.headers)
            if pair[0] not in ("Connection", "Upgrade", "Content-Length")
        ]
        headers = [*kept, *_forwarded(self.source_ip, self.port, "http")]
        return {
            "headers": _joined(headers),
            "multiValueHeaders": _multi_value(headers),
            **self._query(),
            "requestContext": self._request_context("$connect", "CONNECT"),
            "isBase64Encoded": False,
        }

    def authorize(self) -> dict[str, Any]:
        """Return the event of the REQUEST authorizer."""
        connect = self.connect()
        handshake = [("Connection", "upgrade"), ("content-length", "0"), ("Upgrade", "websocket")]
        for name, value in handshake:
            connect["headers"][name] = value
            connect["multiValueHeaders"][name] = [value]
        query: dict[str, Any] = {
            "queryStringParameters": {},
            "multiValueQueryStringParameters": {},
        }
        return {
            "type": "REQUEST",
            "methodArn": self.method_arn,
            "stageVariables": {},
            **query,
            **{name: value for name, value in connect.items() if name != "isBase64Encoded"},
        }

    def message(self, text: str, route_key: str = "$default") -> dict[str, Any]:
        """Return the event of a message that matched a route."""
        context = self._request_context(route_key, "MESSAGE")
        context["messageId"] = new_id()
        return {"requestContext": context, "body": text, "isBase64Encoded": False}

    def disconnect(self, code: int, reason: str) -> dict[str, Any]:
        """Return the event of `$disconnect`."""
        context = self._request_context("$disconnect", "DISCONNECT")
        context["disconnectStatusCode"] = code
        context["disconnectReason"] = reason
        headers = {
            "Host": self.domain_name,
            "x-api-key": "",
            "X-Forwarded-For": "",
            "x-restapi": "",
        }
        return {
            "headers": headers,
            "multiValueHeaders": {name: [value] for name, value in headers.items()},
            "requestContext": context,
            "isBase64Encoded": False,
        }

    def _query(self) -> dict[str, Any]:
        if not self.query:
            return {}
        pairs = parse_qsl(self.query, keep_blank_values=True)
        return {
            "queryStringParameters": dict(pairs),
            "multiValueQueryStringParameters": _multi_value(pairs),
        }

    def _request_context(self, route_key: str, event_type: str) -> dict[str, Any]:
        now = time.time()
        request_id = new_id()
        identity = {"sourceIp": self.source_ip}
        agent = dict(self.headers).get("User-Agent")
        if agent is not None:
            identity = {"userAgent": agent, **identity}
        authorizer = {} if self.authorizer is None else {"authorizer": dict(self.authorizer)}
        return {
            "routeKey": route_key,
            **authorizer,
            "eventType": event_type,
            "extendedRequestId": request_id,
            "requestTime": _request_time(now),
            "messageDirection": "IN",
            "stage": self.stage,
            "connectedAt": self.connected_at,
            "requestTimeEpoch": int(now * 1000),
            "identity": identity,
            "requestId": request_id,
            "domainName": self.domain_name,
            "connectionId": self.connection_id,
            "apiId": WEBSOCKET_API,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RestRequest:
    """A request to the REST API, matched to a route."""

    method: str
    path: str
    resource: str
    path_parameters: Mapping[str, str]
    query: str
    headers: Headers
    body: bytes
    source_ip: str
    domain_name: str
    port: int

    @property
    def method_arn(self) -> str:
        """The ARN that an authorizer's policy must allow."""
        api = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{REST_API}/{REST_STAGE}"
        return f"{api}/{self.method}{self.path}"

    def authorize(self, token: str) -> dict[str, Any]:
        """Return the event of a TOKEN authorizer."""
        return {"type": "TOKEN", "methodArn": self.method_arn, "authorizationToken": token}

    def proxy(
        self, authorizer: Mapping[str, Any] | None, binary_types: Sequence[str]
    ) -> dict[str, Any]:
        """Return the event of the Lambda proxy integration."""
        headers = [
            *_without_forwarded(self.headers),
            *_forwarded(self.source_ip, self.port, "http"),
        ]
        pairs = parse_qsl(self.query, keep_blank_values=True)
        return {
            "resource": self.resource,
            "path": self.path,
            "httpMethod": self.method,
            "headers": dict(headers),
            "multiValueHeaders": _multi_value(headers),
            "queryStringParameters": dict(pairs) or None,
            "multiValueQueryStringParameters": _multi_value(pairs) or None,
            "pathParameters": dict(self.path_parameters) or None,
            "stageVariables": None,
            "requestContext": self._request_context(authorizer),
            **self._body(binary_types),
        }

    def _body(self, binary_types: Sequence[str]) -> dict[str, Any]:
        if not self.body:
            return {"body": None, "isBase64Encoded": False}
        content_type = dict(self.headers).get("Content-Type", "").partition(";")[0].strip()
        if content_type not in binary_types:
            try:
                return {"body": self.body.decode(), "isBase64Encoded": False}
            except UnicodeDecodeError:
                pass  # not text: hand over the bytes unchanged
        return {"body": base64.b64encode(self.body).decode(), "isBase64Encoded": True}

    def _request_context(self, authorizer: Mapping[str, Any] | None) -> dict[str, Any]:
        now = time.time()
        context = {
            "resourceId": "herald",
            "resourcePath": self.resource,
            "httpMethod": self.method,
            "extendedRequestId": new_id(),
            "requestTime": _request_time(now),
            "path": f"/{REST_STAGE}{self.path}",
            "accountId": ACCOUNT,
            "protocol": "HTTP/1.1",
            "stage": REST_STAGE,
            "domainPrefix": REST_API,
            "requestTimeEpoch": int(now * 1000),
            "requestId": new_id(),
            "identity": {
                "sourceIp": self.source_ip,
                "userAgent": dict(self.headers).get("User-Agent"),
            },
            "domainName": self.domain_name,
            "apiId": REST_API,
        }
        return context if authorizer is None else {**context, "authorizer": dict(authorizer)}
