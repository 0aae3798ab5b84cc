"""The CloudFormation templates of what Chalice doesn't make.

`merge_template` is merged into Chalice's own template by `chalice package --merge-template`.
`storage_template` and `edge_template` are stacks of their own, before and after `chalice deploy`.

Chalice merges dictionaries deeply, replaces lists, and deletes nothing. It merges two intrinsic
functions like any other dictionaries, so a value that Chalice gives with one intrinsic can't be
replaced by another.
"""

from typing import Any

from infra.alarms import alarms
from infra.dashboard import dashboard
from infra.stage import FUNCTIONS, Stage

RETENTION_DAYS = 30
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
PARAMETERS: dict[str, Any] = {
    "AccessLogs": {
        "Type": "String",
        "AllowedValues": ["true", "false"],
        "Default": "false",
        "Description": (
            "Whether API Gateway logs each request. The account must have a role for that:"
            " https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-logging.html"
        ),
    },
    "ThrottlingRate": {
        "Type": "Number",
        "Default": 5000,
        "Description": "Requests and frames a second that each of the two APIs accepts.",
    },
    "ThrottlingBurst": {
        "Type": "Number",
        "Default": 2500,
        "Description": "Requests and frames that each of the two APIs accepts at once.",
    },
    "AlarmTopic": {
        "Type": "String",
        "Default": "",
        "Description": "The ARN of an SNS topic that alarms notify; empty for no topic.",
    },
}
CONDITIONS = {
    "HasAccessLogs": {"Fn::Equals": [{"Ref": "AccessLogs"}, "true"]},
    "HasAlarmTopic": {"Fn::Not": [{"Fn::Equals": [{"Ref": "AlarmTopic"}, ""]}]},
}
NO_VALUE = {"Ref": "AWS::NoValue"}
OUTPUTS = {
    "FanoutQueueURL": {"Value": {"Ref": "FanoutQueue"}},
    "DeadLettersURL": {"Value": {"Ref": "FanoutDeadLetterQueue"}},
}


def merge_template(stage: Stage) -> dict[str, Any]:
    """Return everything of a stage except the functions and the APIs, which Chalice makes."""
    return {
        "Parameters": PARAMETERS,
        "Conditions": CONDITIONS,
        "Resources": {
            **_kept(stage.resources),
            **_logs({name: stage.log_group(name) for name in FUNCTIONS}),
            **_access_log_group(stage),
            **_functions(stage),
            **_websocket_api(),
            **_rest_api(),
            **_authorizer(stage),
            **_monitoring(stage),
        },
        "Outputs": OUTPUTS,
    }


def storage_template(stage: Stage) -> dict[str, Any]:
    """Return the template of what `chalice deploy` needs but can't make.

    That is the tables, the queues, a random signing key, and the log groups, which Lambda would
    create without a retention period.
    """
    return {
        "Resources": {
            **_kept(stage.resources),
            **_logs({name: stage.chalice_log_group(name) for name in FUNCTIONS}),
            "SigningKey": _signing_key(stage),
        },
        "Outputs": OUTPUTS,
    }


def edge_template(stage: Stage) -> dict[str, Any]:
    """Return the template of what needs the functions and the API: authorizer, dashboard, alarms.

    Its parameters are called like the resources that they stand for, so that `merge_template` and
    this template can share the definitions of what refers to those.
    """
    made = {name: {"Type": "String"} for name in ("WebsocketAPI", *FUNCTIONS.values())}
    return {
        "Parameters": {**made, "AlarmTopic": PARAMETERS["AlarmTopic"]},
        "Conditions": {"HasAlarmTopic": CONDITIONS["HasAlarmTopic"]},
        "Resources": {**_authorizer(stage), **_monitoring(stage)},
        "Outputs": {"TokenAuthorizerId": {"Value": {"Ref": "TokenAuthorizer"}}},
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


def _kept(resources: dict[str, Any]) -> dict[str, Any]:
    """Retain tables when the stack is deleted (but not when its creation fails), because losing the
    connections table cuts off every client."""
    for resource in resources.values():
        table = resource["Type"] == "AWS::DynamoDB::Table"
        resource["DeletionPolicy"] = "RetainExceptOnCreate" if table else "Delete"
        resource["UpdateReplacePolicy"] = "Retain" if table else "Delete"
    return resources


def _logs(groups: dict[str, str]) -> dict[str, Any]:
    """Return the log groups of functions, given each group's name by the function's name."""
    return {f"{FUNCTIONS[name]}Logs": _log_group(group) for name, group in groups.items()}


def _signing_key(stage: Stage) -> dict[str, Any]:
    """Return a secret whose value is an HS256 key: 64 of 62 characters, which are 381 bits."""
    return {
        "Type": "AWS::SecretsManager::Secret",
        "DeletionPolicy": "Delete",
        "UpdateReplacePolicy": "Delete",
        "Properties": {
            "Name": stage.signing_key,
            "Description": f"Signs the tokens of Herald's stage {stage.name}",
            "GenerateSecretString": {"PasswordLength": 64, "ExcludePunctuation": True},
        },
    }


def _access_log_group(stage: Stage) -> dict[str, Any]:
    return {"AccessLogGroup": _log_group(stage.log_group("access"))}


def _log_group(name: str) -> dict[str, Any]:
    return {
        "Type": "AWS::Logs::LogGroup",
        "DeletionPolicy": "Delete",
        "UpdateReplacePolicy": "Delete",
        "Properties": {"LogGroupName": name, "RetentionInDays": RETENTION_DAYS},
    }


def _monitoring(stage: Stage) -> dict[str, Any]:
    return {**alarms(stage), "Dashboard": dashboard(stage)}


def _functions(stage: Stage) -> dict[str, Any]:
    """Return the variables and the log group of each function."""
    return {
        logical_id: {
            "Properties": {
                "Environment": {
                    "Variables": {
                        "HERALD_STAGE": stage.name,
                        "HERALD_FANOUT_QUEUE_URL": {"Ref": "FanoutQueue"},
                    }
                },
                "LoggingConfig": {"LogGroup": {"Ref": f"{logical_id}Logs"}},
            }
        }
        for logical_id in FUNCTIONS.values()
    }


def _authorizer(stage: Stage) -> dict[str, Any]:
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


def _websocket_api() -> dict[str, Any]:
    return {
        "WebsocketConnectRoute": {
            "Properties": {
                "AuthorizationType": "CUSTOM",
                "AuthorizerId": {"Ref": "TokenAuthorizer"},
            }
        },
        "WebsocketAPIStage": {
            "Properties": {
                # Chalice's template deploys no change of a route; let API Gateway deploy each one.
                "AutoDeploy": True,
                "DeploymentId": NO_VALUE,
                "DefaultRouteSettings": {
                    "ThrottlingRateLimit": {"Ref": "ThrottlingRate"},
                    "ThrottlingBurstLimit": {"Ref": "ThrottlingBurst"},
                    "DetailedMetricsEnabled": True,
                },
                "AccessLogSettings": _access_logs(ACCESS_LOG),
            }
        },
    }


def _rest_api() -> dict[str, Any]:
    return {
        "RestAPI": {
            "Properties": {
                "MethodSettings": [
                    {
                        "ResourcePath": "/*",
                        "HttpMethod": "*",
                        "MetricsEnabled": True,
                        "ThrottlingRateLimit": {"Ref": "ThrottlingRate"},
                        "ThrottlingBurstLimit": {"Ref": "ThrottlingBurst"},
                    }
                ],
                "AccessLogSetting": _access_logs(REST_ACCESS_LOG),
                "DefinitionBody": {"x-amazon-apigateway-gateway-responses": gateway_responses()},
            }
        }
    }


def _access_logs(fields: dict[str, str]) -> dict[str, Any]:
    entries = ", ".join(f'"{name}": "{variable}"' for name, variable in fields.items())
    settings = {
        "DestinationArn": {"Fn::GetAtt": ["AccessLogGroup", "Arn"]},
        "Format": f"{{{entries}}}",
    }
    return {"Fn::If": ["HasAccessLogs", settings, NO_VALUE]}
