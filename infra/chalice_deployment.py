"""Deploys a stage with `chalice deploy`, adds what Chalice can't make, and destroys it.

There are three steps:

1. a stack of what the functions need (`template.storage_template`);
2. `chalice deploy`, which developers may also run by hand;
3. a stack of what needs the functions (`template.edge_template`), and a few API calls for settings
   of Chalice's own APIs, which no stack can change.

Chalice recreates its WebSocket routes at each deployment. Until step 3 has run again, `$connect`
has no authorizer and verifies tokens by itself.
"""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.exceptions import ClientError

from chalicelib.stage import named
from infra.bucket import Bucket
from infra.chalice_record import ChaliceRecord, ChaliceResources
from infra.cloudformation import DeploymentError, Stack
from infra.python_runtime import chalice
from infra.stage import API_STAGE, FUNCTIONS, PROJECT, TABLES, Stage
from infra.tables import delete_tables
from infra.template import PARAMETERS, edge_template, gateway_responses, storage_template


class ChaliceDeployment:
    """A stage of `chalice deploy`, in the account and the region of a session."""

    def __init__(self, stage: Stage, session: boto3.Session) -> None:
        self._stage = stage
        self._session = session
        self._bucket = Bucket(session, stage)
        self._storage = Stack(session, f"{stage.stack_name}-storage")
        self._edge = Stack(session, f"{stage.stack_name}-edge")
        self._record = ChaliceRecord(PROJECT, stage.name, self._bucket)

    def exists(self) -> bool:
        """Return whether the stage's resources were made for this method."""
        return self._storage.exists()

    def make_resources(self, parameters: Mapping[str, str]) -> bool:
        """Create what Chalice can't make; if the stage is deployed, attach the rest to it.

        Returns whether the rest is attached. Raises DeploymentError.
        """
        self._apply_storage()
        deployed = self._deployed_resources()
        if "websocket_api" not in deployed or "rest_api" not in deployed:
            return False
        self._attach(deployed, parameters)
        return True

    def deploy(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Create the resources, deploy the app, and attach the rest.

        Returns the outputs that a stack's deployment would have. Raises DeploymentError.
        """
        self._apply_storage()
        self._run_chalice("deploy")
        deployed = self._record.resources()
        self._attach(deployed, parameters)
        return {
            "EndpointURL": deployed["rest_api"]["rest_api_url"],
            "WebsocketConnectEndpointURL": deployed["websocket_api"]["websocket_api_url"],
        }

    def destroy(self) -> None:
        """Delete everything of the stage. What Chalice made goes first, because its routes refer to
        the authorizer. Raises DeploymentError."""
        if self._deployed_resources():
            self._run_chalice("delete")
        self._edge.delete()
        self._storage.delete()
        delete_tables(self._stage, self._session)
        self._bucket.delete()
        self._record.forget()

    def _apply_storage(self) -> None:
        self._bucket.create()
        self._storage.apply(storage_template(self._stage), self._bucket, {})

    def _deployed_resources(self) -> ChaliceResources:
        """Return what Chalice made, if its functions still exist.

        The record alone doesn't tell: `chalice delete` leaves the shared copy unchanged.
        """
        functions = self._session.client("lambda")
        names = map(self._stage.function, FUNCTIONS)
        if not any(_exists(functions.get_function, FunctionName=name) for name in names):
            return {}
        self._record.fetch()
        return self._record.resources()

    def _run_chalice(self, command: str) -> None:
        """Run one of Chalice's commands on the stage. Raises DeploymentError."""
        environment = {"AWS_DEFAULT_REGION": self._session.region_name, **os.environ}
        arguments = [chalice(), command, "--stage", self._stage.name]
        if subprocess.run(arguments, cwd=PROJECT, env=environment, check=False).returncode:
            raise DeploymentError(f"`chalice {command}` failed; its own message is above.")

    def _attach(self, deployed: ChaliceResources, parameters: Mapping[str, str]) -> None:
        """Attach the authorizer, throttling, API Gateway's own answers, alarms and dashboard."""
        rest_api = deployed["rest_api"]["rest_api_id"]
        websocket_api = deployed["websocket_api"]["websocket_api_id"]
        functions = {logical: self._stage.function(name) for name, logical in FUNCTIONS.items()}
        given = {**functions, "WebsocketAPI": websocket_api}
        if "AlarmTopic" in parameters:
            given["AlarmTopic"] = parameters["AlarmTopic"]
        outputs = self._edge.apply(edge_template(self._stage), self._bucket, given)
        throttling = self._throttling(websocket_api, parameters)
        self._finish_websocket_api(websocket_api, outputs["TokenAuthorizerId"], throttling)
        self._finish_rest_api(rest_api, throttling)

    def _throttling(self, api: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Return each limit: the given one, or else the API's current one, or else the default."""
        client = self._session.client("apigatewayv2")
        stage = client.get_stage(ApiId=api, StageName=API_STAGE)
        current: Mapping[str, Any] = stage.get("DefaultRouteSettings", {})

        def value(name: str) -> Any:
            default = PARAMETERS[name]["Default"]
            return parameters.get(name, current.get(f"{name}Limit", default))

        return {
            "ThrottlingRateLimit": float(value("ThrottlingRate")),
            "ThrottlingBurstLimit": int(value("ThrottlingBurst")),
        }

    def _finish_websocket_api(self, api: str, authorizer: str, throttling: Any) -> None:
        """Have `$connect` ask the authorizer, and set the throttling."""
        client = self._session.client("apigatewayv2")
        routes = client.get_routes(ApiId=api)["Items"]
        [connect] = [route["RouteId"] for route in routes if route["RouteKey"] == "$connect"]
        client.update_route(
            ApiId=api, RouteId=connect, AuthorizationType="CUSTOM", AuthorizerId=authorizer
        )
        client.update_stage(
            ApiId=api,
            StageName=API_STAGE,
            DefaultRouteSettings={**throttling, "DetailedMetricsEnabled": True},
            DeploymentId=client.create_deployment(ApiId=api)["DeploymentId"],
        )

    def _finish_rest_api(self, api: str, throttling: Any) -> None:
        """Set the headers of API Gateway's own answers, and the throttling."""
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
    """Return the names of what the stage needs but doesn't have, such as `table herald-dev-users`.

    `signing_key` says whether it needs the one that `make resources` creates.
    """
    dynamodb, sqs = session.client("dynamodb"), session.client("sqs")
    missing = [
        f"table {table}"
        for table in map(stage.named, TABLES.values())
        if not _exists(dynamodb.describe_table, TableName=table)
    ]
    queue = named(stage.name, "fanout")
    if not _exists(sqs.get_queue_url, QueueName=queue):
        missing.append(f"queue {queue}")
    if signing_key and not has_signing_key(stage, session):
        missing.append(f"secret {stage.signing_key}")
    return missing


def has_signing_key(stage: Stage, session: boto3.Session) -> bool:
    """Return whether the stage has the secret that `make resources` creates."""
    secrets = session.client("secretsmanager")
    return _exists(secrets.describe_secret, SecretId=stage.signing_key)


def _exists(describe: Any, **parameters: str) -> bool:
    """Return whether AWS can describe a resource. Raises ClientError for any other refusal."""
    try:
        description = describe(**parameters)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if any(word in code for word in ("NotFound", "NonExistent", "DoesNotExist")):
            return False
        raise
    return "DeletedDate" not in description  # a secret that is scheduled for deletion
