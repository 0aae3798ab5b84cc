"""What Chalice lacks: to be merged into its CloudFormation template by `--merge-template`, or as
two stacks, before and after `chalice deploy`.

Chalice merges dictionaries deeply, replaces lists, and deletes nothing. It would merge an intrinsic
with another as well, so what it already says with one can't be said again with another.
"""

from typing import Any

from infra.dashboard import alarms, dashboard
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
"""Never the request's line or headers: a token may be in them.
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
        "Description": "Requests and frames a second that each of the two APIs lets in.",
    },
    "ThrottlingBurst": {"Type": "Number", "Default": 2500, "Description": "At once."},
    "AlarmTopic": {
        "Type": "String",
        "Default": "",
        "Description": "The ARN of an SNS topic that is told of alarms; none where it is empty.",
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
    """Everything of a stage but its functions."""
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
            **_watch(stage),
        },
        "Outputs": OUTPUTS,
    }


def storage(stage: Stage) -> dict[str, Any]:
    """The template of what `chalice deploy` needs but can't make: tables, queues, the log groups
    that Lambda would make without an end, and a random signing key."""
    return {
        "Resources": {
            **_kept(stage.resources),
            **_logs({name: stage.chalice_log_group(name) for name in FUNCTIONS}),
            "SigningKey": _signing_key(stage),
        },
        "Outputs": OUTPUTS,
    }


def edge(stage: Stage) -> dict[str, Any]:
    """The template of what needs the functions and the API: the authorizer, dashboard, alarms.

    Its parameters have the names of what they refer to, so that its resources are the same ones
    as those of a template that has both.
    """
    made = {name: {"Type": "String"} for name in ("WebsocketAPI", *FUNCTIONS.values())}
    return {
        "Parameters": {**made, "AlarmTopic": PARAMETERS["AlarmTopic"]},
        "Conditions": {"HasAlarmTopic": CONDITIONS["HasAlarmTopic"]},
        "Resources": {**_authorizer(stage), **_watch(stage)},
        "Outputs": {"TokenAuthorizerId": {"Value": {"Ref": "TokenAuthorizer"}}},
    }


def gateway_responses() -> dict[str, Any]:
    """API Gateway's own refusals of REST requests: pages of other origins may read them, and 401
    says which scheme it wants, as RFC 9110 section 11.6.1 demands."""
    readable = {"gatewayresponse.header.Access-Control-Allow-Origin": "'*'"}
    templates = {"application/json": '{"message": $context.error.messageString}'}
    wanted = {**readable, "gatewayresponse.header.WWW-Authenticate": "'Bearer'"}
    return {
        "UNAUTHORIZED": {
            "statusCode": "401",
            "responseParameters": wanted,
            "responseTemplates": templates,
        },
        "DEFAULT_4XX": {"responseParameters": readable, "responseTemplates": templates},
        "DEFAULT_5XX": {"responseParameters": readable, "responseTemplates": templates},
    }


def _kept(resources: dict[str, Any]) -> dict[str, Any]:
    """Tables outlive the stack, unless it could not be made: to lose connections is to lose every
    client's."""
    for resource in resources.values():
        table = resource["Type"] == "AWS::DynamoDB::Table"
        resource["DeletionPolicy"] = "RetainExceptOnCreate" if table else "Delete"
        resource["UpdateReplacePolicy"] = "Retain" if table else "Delete"
    return resources


def _logs(groups: dict[str, str]) -> dict[str, Any]:
    """The log groups of functions, from a group's name by the function's."""
    return {f"{FUNCTIONS[name]}Logs": _log_group(group) for name, group in groups.items()}


def _signing_key(stage: Stage) -> dict[str, Any]:
    """A secret whose whole value is an HS256 key, from 62 characters: 381 bits."""
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


def _watch(stage: Stage) -> dict[str, Any]:
    return {**alarms(stage), "Dashboard": dashboard(stage)}


def _functions(stage: Stage) -> dict[str, Any]:
    """What each function is told, and where it logs."""
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
    """The authorizer of `$connect`. It has no identity sources: a token may come in a header, a
    subprotocol or the query, and API Gateway would refuse who lacks one of those that are named."""
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
                # Chalice's deployment never changes with the routes: let each change deploy itself.
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
