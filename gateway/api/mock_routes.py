"""Routes with a MOCK integration: API Gateway answers their frames from templates.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-selection-expressions.html
https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-mapping-template-reference.html
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from airspeed import Template, TemplateError

from gateway.configuration import RouteDefinition

ROUTE_SELECTION = "$request.body.action"
"""The expression that chooses a frame's route in the APIs that Chalice makes."""
BODY = "$request.body."


class MockError(Exception):
    """API Gateway would answer with an internal error: a template or a response doesn't fit."""


class MockRoutes:
    """The routes with a MOCK integration of a WebSocket API."""

    def __init__(self, definitions: Iterable[RouteDefinition]) -> None:
        """Take the parameters with which API Gateway's operations create the routes."""
        routes = (MockRoute(definition) for definition in definitions)
        self._routes = {route.key: route for route in routes}

    def of(self, text: str) -> "MockRoute | None":
        """Return the route that answers a frame; None if a function does."""
        return self._routes.get(selected(ROUTE_SELECTION, text)) if self._routes else None


class MockRoute:
    """One route: it renders a request, whose status selects the response to render."""

    def __init__(self, definition: RouteDefinition) -> None:
        self.key: str = definition["Route"]["RouteKey"]
        self._answers = "RouteResponse" in definition
        self._integration = definition["Integration"]
        self._response = definition["IntegrationResponse"]

    def answer(self, text: str, context: Mapping[str, Any]) -> str | None:
        """Return the frame that answers a frame; None if the route has no route response.

        Args:
            text: The client's frame.
            context: The `requestContext` of its event, which templates know as `$context`.

        Raises:
            MockError: API Gateway's answer would be an internal error.
        """
        template = _template(self._integration, "RequestTemplates", text)
        request = text if template is None else _render(template, context)
        status = _status(request)
        pattern = self._response["IntegrationResponseKey"]
        if pattern != "$default" and not re.fullmatch(pattern.strip("/"), status):
            raise MockError(f"no integration response for the status {status}")
        template = _template(self._response, "ResponseTemplates", text)
        response = request if template is None else _render(template, context)
        return response if self._answers else None


def selected(expression: str, text: str) -> str:
    """Return what a selection expression yields for a frame; "" if the frame lacks it.

    An expression is `$request.body.NAME`, with dots between the names of nested fields, or a text
    that stands for itself, in which `\\$` is a dollar sign.
    """
    if not expression.startswith(BODY):
        return expression.replace("\\$", "$")
    try:
        value = json.loads(text)
        for name in expression.removeprefix(BODY).split("."):
            value = value[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""


def _template(side: Mapping[str, Any], templates: str, text: str) -> str | None:
    """Return the template that is selected for a frame; None lets the body pass through."""
    name = selected(side.get("TemplateSelectionExpression", "$default"), text)
    template: str | None = side.get(templates, {}).get(name)
    return template


def _status(request: str) -> str:
    """Return the status that a rendered request names. Raises MockError."""
    try:
        return str(int(json.loads(request)["statusCode"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        raise MockError(f"the request has no statusCode: {request:.99}") from None


def _render(template: str, context: Mapping[str, Any]) -> str:
    """Render a template in Velocity's language, with `$context`. Raises MockError."""
    try:
        rendered: str = _compiled(template).merge({"context": _Fields(context)})
    except TemplateError as error:
        raise MockError(str(error)) from None
    return rendered


@cache
def _compiled(template: str) -> Template:
    return Template(template)


class _Fields(dict[str, Any]):
    """Fields of `$context`, of which an unknown one is rendered as nothing."""

    def __getitem__(self, name: str) -> Any:
        value = self.get(name, "")
        return _Fields(value) if isinstance(value, dict) else value

    def __str__(self) -> str:
        return json.dumps(self)
