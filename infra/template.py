"""The CloudFormation templates of what Chalice doesn't make.

`merge_template` is merged into Chalice's own template by `chalice package --merge-template`.
`storage_template` and `edge_template` are stacks of their own, before and after `chalice deploy`.

Chalice merges dictionaries deeply, replaces lists, and deletes nothing. It merges two intrinsic
functions like any other dictionaries, so a value that Chalice gives with one intrinsic can't be
replaced by another.
"""

from typing import Any

from infra.alarms import alarms
from infra.apis import authorizer, rest_api, web_acl, websocket_api
from infra.configuration import StageConfiguration
from infra.dashboard import dashboard
from infra.parameters import (
    CONDITIONS,
    EDGE_CONDITIONS,
    EDGE_PARAMETERS,
    PARAMETERS,
    STORAGE_CONDITIONS,
    STORAGE_PARAMETERS,
    if_set,
)
from infra.stage import API_STAGE, FUNCTIONS, Stage

RETENTION_DAYS = 30
CALLED_BY_CLIENTS = (
    "api_handler",
    "rest_authorizer",
    "connect_authorizer",
    "websocket_connect",
    "websocket_message",
)
OUTPUTS = {
    "FanoutQueueURL": {"Value": {"Ref": "FanoutQueue"}},
    "DeadLettersURL": {"Value": {"Ref": "FanoutDeadLetterQueue"}},
}


def merge_template(configuration: StageConfiguration) -> dict[str, Any]:
    """Return everything of a stage except the functions and the APIs, which Chalice makes."""
    stage = configuration.stage
    return {
        "Parameters": PARAMETERS,
        "Conditions": CONDITIONS,
        "Resources": {
            **_kept(_encrypted(configuration.resources)),
            **_logs({name: stage.log_group(name) for name in FUNCTIONS}),
            **_access_log_group(stage),
            **_functions(configuration),
            **websocket_api(),
            **rest_api(),
            **authorizer(stage),
            **web_acl("${RestAPI.Stage}"),
            **_monitoring(configuration),
        },
        "Outputs": OUTPUTS,
    }


def storage_template(configuration: StageConfiguration) -> dict[str, Any]:
    """Return the template of what `chalice deploy` needs but can't make.

    That is the tables, the queues, a random signing key, and the log groups, which Lambda would
    create without a retention period.
    """
    stage = configuration.stage
    return {
        "Parameters": STORAGE_PARAMETERS,
        "Conditions": STORAGE_CONDITIONS,
        "Resources": {
            **_kept(_encrypted(configuration.resources)),
            **_logs({name: stage.chalice_log_group(name) for name in FUNCTIONS}),
            "SigningKey": _signing_key(stage),
        },
        "Outputs": {
            **OUTPUTS,
            "KmsKey": {"Condition": "HasKmsKey", "Value": {"Ref": "KmsKey"}},
        },
    }


def edge_template(configuration: StageConfiguration) -> dict[str, Any]:
    """Return the template of what needs the functions and the APIs: authorizer, web ACL, dashboard,
    alarms.

    Its parameters are called like the resources that they stand for, so that `merge_template` and
    this template can share the definitions of what refers to those.
    """
    stage = configuration.stage
    made = {name: {"Type": "String"} for name in ("RestAPI", "WebsocketAPI", *FUNCTIONS.values())}
    return {
        "Parameters": {**made, **EDGE_PARAMETERS},
        "Conditions": EDGE_CONDITIONS,
        "Resources": {
            **authorizer(stage),
            **web_acl(API_STAGE),
            **_monitoring(configuration),
        },
        "Outputs": {"TokenAuthorizerId": {"Value": {"Ref": "TokenAuthorizer"}}},
    }


def _kept(resources: dict[str, Any]) -> dict[str, Any]:
    """Retain tables when the stack is deleted (but not when its creation fails), because losing the
    connections table cuts off every client."""
    for resource in resources.values():
        table = resource["Type"] == "AWS::DynamoDB::Table"
        resource["DeletionPolicy"] = "RetainExceptOnCreate" if table else "Delete"
        resource["UpdateReplacePolicy"] = "Retain" if table else "Delete"
    return resources


def _encrypted(resources: dict[str, Any]) -> dict[str, Any]:
    """Encrypt tables and queues with the customer's key where one is given.

    A queue has one of two kinds of encryption:
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-sqs-queue.html
    """
    key = if_set("HasKmsKey", {"Ref": "KmsKey"})
    for resource in resources.values():
        if resource["Type"] == "AWS::DynamoDB::Table":
            resource["Properties"]["SSESpecification"]["KMSMasterKeyId"] = key
        else:
            resource["Properties"]["KmsMasterKeyId"] = key
            resource["Properties"]["SqsManagedSseEnabled"] = if_set("HasKmsKey", False, True)
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
            "KmsKeyId": if_set("HasKmsKey", {"Ref": "KmsKey"}),
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


def _monitoring(configuration: StageConfiguration) -> dict[str, Any]:
    return {**alarms(configuration), "Dashboard": dashboard(configuration.stage)}


def _functions(configuration: StageConfiguration) -> dict[str, Any]:
    """Return the variables, the log group and the concurrency of each function."""
    functions: dict[str, Any] = {
        logical_id: {
            "Properties": {
                "Environment": {
                    "Variables": {
                        "HERALD_STAGE": configuration.stage.name,
                        "HERALD_FANOUT_QUEUE_URL": {"Ref": "FanoutQueue"},
                    }
                },
                "LoggingConfig": {"LogGroup": {"Ref": f"{logical_id}Logs"}},
            }
        }
        for logical_id in FUNCTIONS.values()
    }
    for name in CALLED_BY_CLIENTS:
        if configuration.of(name).reserved_concurrency is None:  # else Chalice reserves it
            functions[FUNCTIONS[name]]["Properties"]["ReservedConcurrentExecutions"] = if_set(
                "HasReservedConcurrency", {"Ref": "ReservedConcurrency"}
            )
    functions["DeliverQueued"]["Properties"]["Events"] = {
        "DeliverQueuedSqsEventSource": {"Properties": {"ScalingConfig": _worker_concurrency()}}
    }
    return functions


def _worker_concurrency() -> dict[str, Any]:
    """Return how many workers Lambda runs at once, so that broadcasts leave the rest of the
    account's concurrency to others.

    https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html"""
    limit = {"MaximumConcurrency": {"Ref": "WorkerConcurrency"}}
    return if_set("HasWorkerConcurrency", limit)
