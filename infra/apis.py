"""The parts of a template that belong to the two APIs: routes, limits, logs, authorizer, web ACL.

https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_ApiGatewayV2.html
"""

from typing import Any

from infra.mock_routes import PING, PING_KEY, resources
from infra.parameters import (
    NO_VALUE,
    OTHERS,
    REST_THROTTLES,
    WEBSOCKET_THROTTLES,
    Throttle,
    if_set,
    limits,
)
from infra.stage import Stage

WEBSOCKET_ROUTES = ["WebsocketConnectRoute", "WebsocketMessageRoute", "WebsocketDisconnectRoute"]
ACCESS_LOG = {
    "requestId": "$context.requestId",
    "ip": "$context.identity.sourceIp",
    "requestTime": "$context.requestTime",
    "routeKey": "$context.routeKey",
    "eventType": "$context.eventType",
    "status": "$context.status",
    "connectionId": "$context.connectionId",
    "integrationLatency": "$context.integrationLatency",
    "error": "$context.error.message",
    "authorizerError": "$context.authorizer.error",
}
"""Without the request line and the headers, which may contain a token.
https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-logging.html"""
REST_ACCESS_LOG = {
    "requestId": "$context.requestId",
    "ip": "$context.identity.sourceIp",
    "requestTime": "$context.requestTime",
    "httpMethod": "$context.httpMethod",
    "resourcePath": "$context.resourcePath",
    "status": "$context.status",
    "responseLatency": "$context.responseLatency",
    "error": "$context.error.message",
    "authorizerError": "$context.authorizer.error",
}


def websocket_api() -> dict[str, Any]:
    """Return what is merged into the WebSocket API that Chalice makes."""
    settings = {key: _route_settings(throttle) for key, throttle in WEBSOCKET_THROTTLES.items()}
    settings[PING_KEY] = if_set("HasPingRoute", settings[PING_KEY])
    return {
        **resources("WebsocketPing", PING, "HasPingRoute"),
        "WebsocketConnectRoute": {
            "Properties": {
                "AuthorizationType": "CUSTOM",
                "AuthorizerId": {"Ref": "TokenAuthorizer"},
            }
        },
        "WebsocketAPIStage": {
            # API Gateway refuses settings of a route that doesn't exist yet.
            "DependsOn": WEBSOCKET_ROUTES,
            "Properties": {
                # DependsOn may not name what a condition leaves out; naming it here does the same.
                "Description": if_set(
                    "HasPingRoute",
                    {"Fn::Sub": "Its route ${WebsocketPingRoute} answers pings"},
                    "A function answers pings",
                ),
                # Chalice's template deploys no change of a route; let API Gateway deploy each one.
                "AutoDeploy": True,
                "DeploymentId": NO_VALUE,
                "DefaultRouteSettings": _route_settings(OTHERS),
                "RouteSettings": settings,
                "AccessLogSettings": _access_logs(ACCESS_LOG),
            },
        },
    }


def _route_settings(throttle: Throttle) -> dict[str, Any]:
    """Return all settings of a route, since what they leave out isn't the default route's."""
    return {
        **limits(throttle, rate="ThrottlingRateLimit", burst="ThrottlingBurstLimit"),
        "DetailedMetricsEnabled": True,
    }


def rest_api() -> dict[str, Any]:
    """Return what is merged into the REST API that Chalice makes."""
    return {
        "RestAPI": {
            "Properties": {
                "MethodSettings": [
                    _method_settings("/*", "*", OTHERS),
                    *(
                        _method_settings(encoded_path(path), method, throttle)
                        for (path, method), throttle in REST_THROTTLES.items()
                    ),
                ],
                "AccessLogSetting": _access_logs(REST_ACCESS_LOG),
                "DefinitionBody": {"x-amazon-apigateway-gateway-responses": gateway_responses()},
            }
        }
    }


def _method_settings(path: str, method: str, throttle: Throttle) -> dict[str, Any]:
    return {
        "ResourcePath": path,
        "HttpMethod": method,
        "MetricsEnabled": True,
        **limits(throttle, rate="ThrottlingRateLimit", burst="ThrottlingBurstLimit"),
    }


def encoded_path(path: str) -> str:
    """Return a route's path as settings of methods name it: `/~1users~1{user_id}`.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-properties-apigateway-stage-methodsetting.html
    """
    return "/" + path.replace("/", "~1")


def _access_logs(fields: dict[str, str]) -> dict[str, Any]:
    entries = ", ".join(f'"{name}": "{variable}"' for name, variable in fields.items())
    settings = {
        "DestinationArn": {"Fn::GetAtt": ["AccessLogGroup", "Arn"]},
        "Format": f"{{{entries}}}",
    }
    return if_set("HasAccessLogs", settings)


def authorizer(stage: Stage) -> dict[str, Any]:
    """Return the authorizer of `$connect`.

    It names no identity sources: a token may come in a header, a subprotocol or the query, and API
    Gateway refuses a handshake that lacks any identity source that is named.
    """
    account = "${AWS::Region}:${AWS::AccountId}"
    function = f"arn:${{AWS::Partition}}:lambda:{account}:function:${{ConnectAuthorizer}}"
    uri = (
        "arn:${AWS::Partition}:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/"
        f"{function}/invocations"
    )
    source = (
        "arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:"
        "${WebsocketAPI}/authorizers/${TokenAuthorizer}"
    )
    return {
        "TokenAuthorizer": {
            "Type": "AWS::ApiGatewayV2::Authorizer",
            "Properties": {
                "ApiId": {"Ref": "WebsocketAPI"},
                "Name": f"{stage.prefix}token",
                "AuthorizerType": "REQUEST",
                "AuthorizerUri": {"Fn::Sub": uri},
            },
        },
        "TokenAuthorizerPermission": {
            "Type": "AWS::Lambda::Permission",
            "Properties": {
                "FunctionName": {"Ref": "ConnectAuthorizer"},
                "Action": "lambda:InvokeFunction",
                "Principal": "apigateway.amazonaws.com",
                "SourceArn": {"Fn::Sub": source},
            },
        },
    }


def web_acl(rest_stage: str) -> dict[str, Any]:
    """Return what attaches the web ACL to the REST API's stage. WAF can't protect WebSocket APIs.

    https://docs.aws.amazon.com/waf/latest/developerguide/how-aws-waf-works-resources.html
    """
    api = "arn:${AWS::Partition}:apigateway:${AWS::Region}::/restapis/${RestAPI}/stages/"
    return {
        "WebACLAssociation": {
            "Type": "AWS::WAFv2::WebACLAssociation",
            "Condition": "HasWebACL",
            "Properties": {
                "ResourceArn": {"Fn::Sub": api + rest_stage},
                "WebACLArn": {"Ref": "WebACL"},
            },
        }
    }


def gateway_responses() -> dict[str, Any]:
    """Return API Gateway's own refusals of REST requests.

    Pages of other origins can read them, and 401 names the scheme that it requires, as RFC 9110
    section 11.6.1 demands.
    """
    cors = {"gatewayresponse.header.Access-Control-Allow-Origin": "'*'"}
    templates = {"application/json": '{"message": $context.error.messageString}'}
    challenge = {**cors, "gatewayresponse.header.WWW-Authenticate": "'Bearer'"}
    return {
        "UNAUTHORIZED": {
            "statusCode": "401",
            "responseParameters": challenge,
            "responseTemplates": templates,
        },
        "DEFAULT_4XX": {"responseParameters": cors, "responseTemplates": templates},
        "DEFAULT_5XX": {"responseParameters": cors, "responseTemplates": templates},
    }
