"""The WebSocket routes that API Gateway answers itself, through a MOCK integration.

Each route is defined once, by the parameters of API Gateway's own operations. The packaged template
uses the definition, and so do `make resources` after a `chalice deploy` (through API calls) and the
local gateway. No function runs for such a frame, nothing is read or written, and nothing is charged
to its sender.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-integrations.html
"""

from typing import Any

MockRoute = dict[str, dict[str, Any]]
"""The parameters of the four operations that create a route, by the operation's resource."""

PING_KEY = "ping"
PING: MockRoute = {
    "Integration": {
        "IntegrationType": "MOCK",
        # An expression without a `$` selects the template of that name.
        "TemplateSelectionExpression": "200",
        "PassthroughBehavior": "WHEN_NO_MATCH",
        "RequestTemplates": {"200": '{"statusCode": 200}'},
    },
    "IntegrationResponse": {
        "IntegrationResponseKey": "/200/",
        "TemplateSelectionExpression": "200",
        # In quotes, since no document says whether the time is known here: an empty one would
        # otherwise make the pong invalid JSON.
        "ResponseTemplates": {"200": '{"type": "pong", "timestamp": "$context.requestTimeEpoch"}'},
    },
    "Route": {"RouteKey": PING_KEY, "RouteResponseSelectionExpression": "$default"},
    "RouteResponse": {"RouteResponseKey": "$default"},
}
"""Answers `{"action": "ping"}`, whatever else the frame has, with `{"type": "pong", …}`."""

MOCK_ROUTES = (PING,)


def resources(name: str, route: MockRoute, condition: str) -> dict[str, Any]:
    """Return a route as resources of CloudFormation.

    Args:
        name: The beginning of their logical ids.
        route: The route's definition.
        condition: The condition under which they are created.
    """
    integration = f"{name}Integration"
    references: dict[str, dict[str, Any]] = {
        "Integration": {},
        "IntegrationResponse": {"IntegrationId": {"Ref": integration}},
        "Route": {"Target": {"Fn::Join": ["/", ["integrations", {"Ref": integration}]]}},
        "RouteResponse": {"RouteId": {"Ref": f"{name}Route"}},
    }
    return {
        f"{name}{kind}": {
            "Type": f"AWS::ApiGatewayV2::{kind}",
            "Condition": condition,
            "Properties": {"ApiId": {"Ref": "WebsocketAPI"}, **references[kind], **properties},
        }
        for kind, properties in route.items()
    }


def attach(client: Any, api: str, route: MockRoute) -> None:
    """Create a route of an API, in place of the one that has its key.

    Args:
        client: An SDK client of `apigatewayv2`.
        api: The id of the WebSocket API.
        route: The route's definition.
    """
    detach(client, api, route)
    integration = client.create_integration(ApiId=api, **route["Integration"])["IntegrationId"]
    client.create_integration_response(
        ApiId=api, IntegrationId=integration, **route["IntegrationResponse"]
    )
    target = f"integrations/{integration}"
    created = client.create_route(ApiId=api, Target=target, **route["Route"])["RouteId"]
    client.create_route_response(ApiId=api, RouteId=created, **route["RouteResponse"])


def detach(client: Any, api: str, route: MockRoute) -> None:
    """Delete the route of an API that has the key of `route`, if there is one."""
    for existing in client.get_routes(ApiId=api)["Items"]:
        if existing["RouteKey"] == route["Route"]["RouteKey"]:
            client.delete_route(ApiId=api, RouteId=existing["RouteId"])
            integration = existing["Target"].removeprefix("integrations/")
            client.delete_integration(ApiId=api, IntegrationId=integration)
