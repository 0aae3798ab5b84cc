"""The REST API: routes, their authorizers and the Lambda proxy integration."""

import base64
import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.authorization import Refused, authorize
from gateway.api.bodies import BodyTooLarge, read_body
from gateway.api.event_stream import EventStream
from gateway.api.events import RestRequest, canonical_headers, new_id
from gateway.functions.declarations import Routes
from gateway.functions.environments import Environments
from gateway.functions.execution_environment import FunctionError
from gateway.functions.runtime import REST_FUNCTION
from gateway.log import log_line, printable

MAX_BODY_BYTES = 10 * 1024 * 1024
INTERNAL_ERROR = b'{"message": "Internal server error"}'


class RestApi:
    """Serves REST requests with the app's function, as API Gateway does."""

    def __init__(
        self,
        environments: Environments,
        *,
        domain_name: str,
        port: int,
        event_stream: EventStream,
    ) -> None:
        self._event_stream = event_stream
        self._environments = environments
        self._domain_name = domain_name
        self._port = port

    async def endpoint(self, request: Request) -> Response:
        """Answer one request, and log it."""
        started = time.perf_counter()
        response = await self._respond(request)
        duration_ms = round((time.perf_counter() - started) * 1000, 1)
        path = printable(request.url.path)
        log_line("REST", f"{request.method} {path}  {response.status_code}  {duration_ms:.0f} ms")
        self._event_stream.notify(
            "rest", method=request.method, path=path, status=response.status_code, ms=duration_ms
        )
        return response

    async def _respond(self, request: Request) -> Response:
        declared = self._environments.declared
        path: str = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0]
        match = match_route(declared["routes"], path)
        if match is None:
            return _unknown_route()
        resource, path_parameters = match
        if request.method == "OPTIONS" and resource in declared["preflights"]:
            return Response(headers=declared["preflights"][resource], media_type="application/json")
        if request.method not in declared["routes"][resource]:
            return _unknown_route()
        try:
            body = await read_body(request, MAX_BODY_BYTES)
        except BodyTooLarge:
            return _error(413, "RequestTooLargeException", "Request Too Long")
        rest_request = RestRequest(
            method=request.method,
            path=path,
            resource=resource,
            path_parameters=path_parameters,
            query=request.url.query,
            headers=canonical_headers(request.scope["headers"]),
            body=body,
            source_ip=request.client.host if request.client else "127.0.0.1",
            domain_name=self._domain_name,
            port=self._port,
        )
        try:
            context = await self._authorize(rest_request)
        except Refused as refusal:
            return REFUSAL_RESPONSES[refusal.status]()
        return await self._invoke(rest_request, context)

    async def _authorize(self, rest_request: RestRequest) -> dict[str, Any] | None:
        """Return the authorizer's context; None for a route without one. Raises Refused."""
        function = self._environments.declared["routes"][rest_request.resource][rest_request.method]
        if function is None:
            return None
        token = dict(rest_request.headers).get("Authorization")
        if not token:
            raise Refused(401)  # without its identity source, API Gateway doesn't run an authorizer
        return await authorize(self._environments, function, rest_request.authorize(token))

    async def _invoke(self, rest_request: RestRequest, context: dict[str, Any] | None) -> Response:
        """Invoke the function; answer 502 if it fails or its result is malformed."""
        event = rest_request.proxy(context, self._environments.declared["binaryTypes"])
        try:
            result = await self._environments.invoke(REST_FUNCTION, event)
            return _response(result, event["requestContext"]["requestId"])
        except FunctionError as error:
            log_line("ERROR", str(error))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log_line("ERROR", f"malformed Lambda proxy response: {error!r}")
        return Response(INTERNAL_ERROR, 502, media_type="application/json")


def match_route(routes: Routes, path: str) -> tuple[str, dict[str, str]] | None:
    """Return the route of a path and its parameters as they are in the path; None if none matches.

    A fixed segment is preferred to a parameter.
    """
    segments = path.rstrip("/").split("/") if path != "/" else ["", ""]
    for route in sorted(routes, key=lambda route: ["{" in segment for segment in route.split("/")]):
        parameters = _match_segments(route.split("/"), segments)
        if parameters is not None:
            return route, parameters
    return None


def _match_segments(patterns: list[str], segments: list[str]) -> dict[str, str] | None:
    if len(patterns) != len(segments):
        return None
    parameters = {}
    for pattern, segment in zip(patterns, segments, strict=True):
        if pattern.startswith("{") and segment:
            parameters[pattern[1:-1]] = segment
        elif pattern != segment:
            return None
    return parameters


def _response(result: dict[str, Any], request_id: str) -> Response:
    """Return a function's proxy result as HTTP, with the request id that the function logs."""
    body: str = result.get("body") or ""
    content = base64.b64decode(body) if result.get("isBase64Encoded") else body.encode()
    response = Response(content, int(result["statusCode"]))
    response.headers["x-amzn-RequestId"] = request_id
    response.headers["Content-Type"] = "application/json"
    for name, value in (result.get("headers") or {}).items():
        response.headers[name] = str(value)
    for name, values in (result.get("multiValueHeaders") or {}).items():
        for value in values:
            response.headers.append(name, str(value))
    return response


def _unknown_route() -> Response:
    """Return what API Gateway answers for a path or method that it doesn't know."""
    return _error(403, "MissingAuthenticationTokenException", "Missing Authentication Token")


def _error(status: int, error_type: str, message: str | None, field: str = "message") -> Response:
    return Response(
        json.dumps({field: message}),
        status,
        headers={
            "x-amzn-RequestId": new_id(),
            "x-amzn-ErrorType": error_type,
            "Access-Control-Allow-Origin": "*",  # as in the deployed stage's template
        },
        media_type="application/json",
    )


REFUSAL_RESPONSES = {
    401: lambda: _error(401, "UnauthorizedException", "Unauthorized"),
    403: lambda: _error(
        403,
        "AccessDeniedException",
        "User is not authorized to access this resource",
        field="Message",
    ),
    500: lambda: _error(500, "AuthorizerConfigurationException", None),
}
