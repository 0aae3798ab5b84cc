"""Deploys a stage by `chalice deploy`, adds what Chalice lacks, and takes the stage away again.

Three steps. A stack of what the functions need (`resources`); `chalice deploy`, which a developer
may as well type; and a stack of what needs the functions, with a few calls for what no stack can
change, since Chalice made it (`attach`). Chalice makes its WebSocket routes anew each time: until
they are attached again, `$connect` has no authorizer and verifies tokens by itself.
"""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.exceptions import ClientError

from chalicelib.stage import named
from infra.chalice_record import Made, Record
from infra.cloudformation import Bucket, DeploymentError, Stack
from infra.deploy import delete_tables
from infra.python_runtime import chalice
from infra.stage import API_STAGE, FUNCTIONS, PROJECT, TABLES, Stage
from infra.template import PARAMETERS, edge, gateway_responses, storage


class ChaliceDeployment:
    """A stage of `chalice deploy`, in the account and the region of a session."""

    def __init__(self, stage: Stage, session: boto3.Session) -> None:
        self._stage = stage
        self._session = session
        self._bucket = Bucket(session, f"herald-{stage.name}")
        self._storage = Stack(session, f"herald-{stage.name}-storage")
        self._edge = Stack(session, f"herald-{stage.name}-edge")
        self._record = Record(PROJECT, stage.name, self._bucket)

    @property
    def exists(self) -> bool:
        """Whether the stage was deployed so, or has its resources made for it."""
        return self._storage.exists

    def make_resources(self, parameters: Mapping[str, str]) -> bool:
        """Make what Chalice can't; whether the stage is deployed, and all is attached to it.

        Raises DeploymentError.
        """
        self._bucket.make()
        self._storage.apply(storage(self._stage), self._bucket, {})
        made = self._made()
        if "websocket_api" not in made or "rest_api" not in made:
            return False
        self._attach(made, parameters)
        return True

    def _made(self) -> Made:
        """What Chalice made and is still there. `chalice delete` leaves the shared record as it
        was, so the functions themselves have the last word."""
        functions = self._session.client("lambda")
        names = map(self._stage.function, FUNCTIONS)
        if not any(_is_there(functions.get_function, FunctionName=name) for name in names):
            return {}
        self._record.fetch()
        return self._record.made

    def deploy(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Make the resources, deploy the app, and attach the rest; outputs as a template's
        deployment has them. Raises DeploymentError."""
        self._bucket.make()
        self._storage.apply(storage(self._stage), self._bucket, {})
        self._chalice("deploy")
        made = self._record.made
        self._attach(made, parameters)
        return {
            "EndpointURL": made["rest_api"]["rest_api_url"],
            "WebsocketConnectEndpointURL": made["websocket_api"]["websocket_api_url"],
        }

    def destroy(self) -> None:
        """Delete all of it: what Chalice made first, since its routes hold the authorizer."""
        if self._made():
            self._chalice("delete")
        self._edge.delete()
        self._storage.delete()
        delete_tables(self._stage, self._session)
        self._bucket.delete()
        self._record.forget()

    def _chalice(self, command: str) -> None:
        """Run one of Chalice's commands on the stage."""
        environment = {"AWS_DEFAULT_REGION": self._session.region_name, **os.environ}
        typed = [chalice(), command, "--stage", self._stage.name]
        if subprocess.run(typed, cwd=PROJECT, env=environment, check=False).returncode:
            raise DeploymentError(f"chalice {command} failed, for the reason above")

    def _attach(self, made: Made, parameters: Mapping[str, str]) -> None:
        rest, websocket = made["rest_api"]["rest_api_id"], made["websocket_api"]["websocket_api_id"]
        names = {logical: self._stage.function(name) for name, logical in FUNCTIONS.items()}
        given = {**names, "WebsocketAPI": websocket}
        if "AlarmTopic" in parameters:
            given["AlarmTopic"] = parameters["AlarmTopic"]
        authorizer = self._edge.apply(edge(self._stage), self._bucket, given)["TokenAuthorizerId"]
        throttling = self._throttling(websocket, parameters)
        self._finish_websocket_api(websocket, authorizer, throttling)
        self._finish_rest_api(rest, throttling)

    def _throttling(self, api: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """As it is given, or else as the API's stage has it, or else the template's."""
        client = self._session.client("apigatewayv2")
        stage = client.get_stage(ApiId=api, StageName=API_STAGE)
        before: Mapping[str, Any] = stage.get("DefaultRouteSettings", {})

        def value(name: str) -> Any:
            default = PARAMETERS[name]["Default"]
            return parameters.get(name, before.get(f"{name}Limit", default))

        return {
            "ThrottlingRateLimit": float(value("ThrottlingRate")),
            "ThrottlingBurstLimit": int(value("ThrottlingBurst")),
        }

    def _finish_websocket_api(self, api: str, authorizer: str, throttling: Any) -> None:
        client = self._session.client("apigatewayv2")
        routes = client.get_routes(ApiId=api)["Items"]
        [route] = [one["RouteId"] for one in routes if one["RouteKey"] == "$connect"]
        client.update_route(
            ApiId=api, RouteId=route, AuthorizationType="CUSTOM", AuthorizerId=authorizer
        )
        client.update_stage(
            ApiId=api,
            StageName=API_STAGE,
            DefaultRouteSettings={**throttling, "DetailedMetricsEnabled": True},
            DeploymentId=client.create_deployment(ApiId=api)["DeploymentId"],
        )

    def _finish_rest_api(self, api: str, throttling: Any) -> None:
        client = self._session.client("apigateway")
        for kind, response in gateway_responses().items():
            client.put_gateway_response(restApiId=api, responseType=kind, **response)
        client.create_deployment(restApiId=api, stageName=API_STAGE)
        settings = {
            "throttling/rateLimit": throttling["ThrottlingRateLimit"],
            "throttling/burstLimit": throttling["ThrottlingBurstLimit"],
            "metrics/enabled": "true",
        }
        client.update_stage(
            restApiId=api,
            stageName=API_STAGE,
            patchOperations=[
                {"op": "replace", "path": f"/*/*/{name}", "value": str(value)}
                for name, value in settings.items()
            ],
        )


def missing_resources(stage: Stage, session: boto3.Session, *, signing_key: bool) -> list[str]:
    """What a stage needs and doesn't have, by name: `table herald-dev-users`.

    `signing_key` says whether it needs one that `make resources` makes.
    """
    dynamodb, sqs = session.client("dynamodb"), session.client("sqs")
    missing = [
        f"table {table}"
        for table in map(stage.named, TABLES.values())
        if not _is_there(dynamodb.describe_table, TableName=table)
    ]
    queue = named(stage.name, "fanout")
    if not _is_there(sqs.get_queue_url, QueueName=queue):
        missing.append(f"queue {queue}")
    if signing_key and not has_signing_key(stage, session):
        missing.append(f"secret {stage.signing_key}")
    return missing


def has_signing_key(stage: Stage, session: boto3.Session) -> bool:
    """Whether the stage has the secret that `make resources` makes."""
    secrets = session.client("secretsmanager")
    return _is_there(secrets.describe_secret, SecretId=stage.signing_key)


def _is_there(describe: Any, **parameters: str) -> bool:
    """Whether AWS can describe a resource. Raises ClientError for any other refusal."""
    try:
        described = describe(**parameters)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if any(word in code for word in ("NotFound", "NonExistent", "DoesNotExist")):
            return False
        raise
    return "DeletedDate" not in described  # a secret that waits for its deletion
