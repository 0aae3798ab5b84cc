"""The REST API: routes, their authorizers, and the Lambda proxy integration."""

import base64
import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.authorization import Refused, authorize
from gateway.api.events import RestRequest, canonical_headers, new_id
from gateway.console.event_stream import Feed
from gateway.functions.environments import Environments, FunctionError
from gateway.functions.runtime import REST_FUNCTION
from gateway.log import log_line, printable

MAX_BODY_BYTES = 10 * 1024 * 1024
INTERNAL_ERROR = b'{"message": "Internal server error"}'


class RestApi:
    """What API Gateway does around the function behind a REST API."""

    def __init__(self, environments: Environments, domain_name: str, port: int, feed: Feed) -> None:
        self._feed = feed
        self._environments = environments
        self._domain_name = domain_name
        self._port = port

    async def endpoint(self, request: Request) -> Response:
        """Answer one request, whatever becomes of it."""
        began = time.perf_counter()
        response = await self._respond(request)
        took = round((time.perf_counter() - began) * 1000, 1)
        path = printable(request.url.path)
        log_line("REST", f"{request.method} {path}  {response.status_code}  {took:.0f} ms")
        self._feed.tell(
            "rest", method=request.method, path=path, status=response.status_code, ms=took
        )
        return response

    async def _respond(self, request: Request) -> Response:
        declared = self._environments.declared
        path: str = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0]
        match = match_route(declared["routes"], path)
        if match is not None and request.method == "OPTIONS" and match[0] in declared["preflights"]:
            return Response(headers=declared["preflights"][match[0]], media_type="application/json")
        if match is None or request.method not in declared["routes"][match[0]]:
            return _error(
                403, "MissingAuthenticationTokenException", "Missing Authentication Token"
            )
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return _error(413, "RequestTooLargeException", "Request Too Long")
        matched = RestRequest(
            method=request.method,
            path=path,
            resource=match[0],
            path_parameters=match[1],
            query=request.url.query,
            headers=canonical_headers(request.scope["headers"]),
            body=body,
            source_ip=request.client.host if request.client else "127.0.0.1",
            domain_name=self._domain_name,
            port=self._port,
        )
        try:
            context = await self._authorize(matched)
        except Refused as refusal:
            return REFUSALS[refusal.status]()
        return await self._invoke(matched, context)

    async def _authorize(self, request: RestRequest) -> dict[str, Any] | None:
        function = self._environments.declared["routes"][request.resource][request.method]
        if function is None:
            return None
        token = dict(request.headers).get("Authorization")
        if not token:
            raise Refused(401)  # API Gateway asks no authorizer without its identity source
        return await authorize(self._environments, function, request.authorize(token))

    async def _invoke(self, request: RestRequest, context: dict[str, Any] | None) -> Response:
        event = request.proxy(context, self._environments.declared["binaryTypes"])
        try:
            result = await self._environments.invoke(REST_FUNCTION, event)
            return _response(result, event["requestContext"]["requestId"])
        except FunctionError as error:
            log_line("ERROR", str(error))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log_line("ERROR", f"malformed Lambda proxy response: {error!r}")
        return Response(INTERNAL_ERROR, 502, media_type="application/json")


def match_route(routes: dict[str, Any], path: str) -> tuple[str, dict[str, str]] | None:
    """The route of a path, and its parameters as they stand in the path; fixed parts come first."""
    parts = path.rstrip("/").split("/") if path != "/" else ["", ""]
    for route in sorted(routes, key=lambda route: ["{" in part for part in route.split("/")]):
        names = route.split("/")
        if len(names) != len(parts):
            continue
        parameters = {}
        for name, part in zip(names, parts, strict=True):
            if name.startswith("{") and part:
                parameters[name[1:-1]] = part
            elif name != part:
                break
        else:
            return route, parameters
    return None


def _response(result: dict[str, Any], request_id: str) -> Response:
    """A function's proxy result as HTTP. The id is the one that the function has for its logs."""
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


def _error(status: int, error_type: str, message: str | None, field: str = "message") -> Response:
    return Response(
        json.dumps({field: message}),
        status,
        headers={
            "x-amzn-RequestId": new_id(),
            "x-amzn-ErrorType": error_type,
            "Access-Control-Allow-Origin": "*",  # as the deployed stage's template has it
        },
        media_type="application/json",
    )


REFUSALS = {
    401: lambda: _error(401, "UnauthorizedException", "Unauthorized"),
    403: lambda: _error(
        403,
        "AccessDeniedException",
        "User is not authorized to access this resource",
        field="Message",
    ),
    500: lambda: _error(500, "AuthorizerConfigurationException", None),
}
