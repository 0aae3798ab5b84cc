"""Deploys a stage with `chalice deploy`, adds what Chalice can't make, and destroys it.

There are three steps:

1. a stack of what the functions need (`template.storage_template`);
2. `chalice deploy`, which developers may also run by hand;
3. a stack of what needs the functions (`template.edge_template`), and a few API calls for settings
   of Chalice's own APIs, which no stack can change.

Chalice deletes all WebSocket routes at each deployment, and recreates its own. Until step 3 has run
again, `$connect` has no authorizer and verifies tokens by itself, and pings reach a function.
"""

import json
import os
import subprocess
from collections.abc import Container, Mapping
from typing import Any

import boto3
from botocore.exceptions import ClientError

from chalicelib.stage import named
from infra.apis import encoded_path, gateway_responses
from infra.bucket import Bucket
from infra.chalice_record import ChaliceRecord, ChaliceResources
from infra.cloudformation import DeploymentError, Stack
from infra.configuration import WORKER, StageConfiguration
from infra.mock_routes import PING, PING_KEY, attach, detach
from infra.parameters import (
    API_SETTINGS,
    EDGE_PARAMETERS,
    OTHERS,
    REST_THROTTLES,
    STORAGE_PARAMETERS,
    WEBSOCKET_THROTTLES,
    Throttle,
)
from infra.python_runtime import chalice
from infra.stage import API_STAGE, FUNCTIONS, PROJECT, TABLES, Stage
from infra.tables import delete_tables
from infra.template import edge_template, storage_template

SETTINGS_KEY = "settings.json"


class ChaliceDeployment:
    """A stage of `chalice deploy`, in the account and the region of a session."""

    def __init__(self, configuration: StageConfiguration, session: boto3.Session) -> None:
        stage = configuration.stage
        self._configuration = configuration
        self._stage = stage
        self._session = session
        self._bucket = Bucket(session, stage)
        self._storage = _storage(stage, session)
        self._edge = Stack(session, f"{stage.stack_name}-edge")
        self._record = ChaliceRecord(PROJECT, stage.name, self._bucket)

    def exists(self) -> bool:
        """Return whether the stage's resources were made for this method."""
        return self._storage.exists()

    def make_resources(self, parameters: Mapping[str, str]) -> bool:
        """Create what Chalice can't make; if the stage is deployed, attach the rest to it.

        Returns whether the rest is attached. Raises DeploymentError.
        """
        self._apply_storage(parameters)
        deployed = self._deployed_resources()
        if "websocket_api" not in deployed or "rest_api" not in deployed:
            return False
        self._attach(deployed, parameters)
        return True

    def deploy(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Create the resources, deploy the app, and attach the rest.

        Returns the outputs that a stack's deployment would have. Raises DeploymentError.
        """
        self._apply_storage(parameters)
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

    def _apply_storage(self, parameters: Mapping[str, str]) -> None:
        self._bucket.create()
        template = storage_template(self._configuration)
        self._storage.apply(template, self._bucket, _among(parameters, STORAGE_PARAMETERS))

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
        """Attach the authorizer, the ping route, the limits, API Gateway's own answers, alarms and
        dashboard."""
        rest_api = deployed["rest_api"]["rest_api_id"]
        websocket_api = deployed["websocket_api"]["websocket_api_id"]
        given = {
            **{logical: self._stage.function(name) for name, logical in FUNCTIONS.items()},
            **_among(parameters, EDGE_PARAMETERS),
            "RestAPI": rest_api,
            "WebsocketAPI": websocket_api,
        }
        outputs = self._edge.apply(edge_template(self._configuration), self._bucket, given)
        settings = self._settings(parameters)
        self._finish_websocket_api(websocket_api, outputs["TokenAuthorizerId"], settings)
        self._finish_rest_api(rest_api, settings)
        self._limit_workers(int(settings["WorkerConcurrency"]))

    def _settings(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Return each setting: the given one, or else that of the last time, or else the default.

        Those that were given are kept in the stage's bucket.
        """
        last: dict[str, str] = json.loads(self._bucket.read(SETTINGS_KEY) or b"{}")
        chosen = {**last, **_among(parameters, API_SETTINGS)}
        if chosen != last:
            self._bucket.write(SETTINGS_KEY, json.dumps(chosen).encode())
        return {
            name: chosen.get(name, str(setting["Default"]))
            for name, setting in API_SETTINGS.items()
        }

    def _finish_websocket_api(self, api: str, authorizer: str, settings: Mapping[str, str]) -> None:
        """Have `$connect` ask the authorizer, attach the ping route, and set the throttles."""
        client = self._session.client("apigatewayv2")
        routes = client.get_routes(ApiId=api)["Items"]
        [connect] = [route["RouteId"] for route in routes if route["RouteKey"] == "$connect"]
        client.update_route(
            ApiId=api,
            RouteId=connect,
            AuthorizationType="CUSTOM",
            AuthorizerId=authorizer,
        )
        throttles = dict(WEBSOCKET_THROTTLES)
        if settings["PingRoute"] == "true":
            attach(client, api, PING)
        else:
            del throttles[PING_KEY]
            _forget_settings(client, api, PING_KEY)
            detach(client, api, PING)

        def route_settings(throttle: Throttle) -> Any:
            return {
                "ThrottlingRateLimit": float(settings[throttle.rate_parameter]),
                "ThrottlingBurstLimit": int(float(settings[throttle.burst_parameter])),
                "DetailedMetricsEnabled": True,
            }

        # First the routes: API Gateway refuses settings of a route that isn't deployed.
        deployment = client.create_deployment(ApiId=api)["DeploymentId"]
        client.update_stage(ApiId=api, StageName=API_STAGE, DeploymentId=deployment)
        client.update_stage(
            ApiId=api,
            StageName=API_STAGE,
            DefaultRouteSettings=route_settings(OTHERS),
            RouteSettings={key: route_settings(one) for key, one in throttles.items()},
        )

    def _finish_rest_api(self, api: str, settings: Mapping[str, str]) -> None:
        """Set the headers of API Gateway's own answers, and the throttles."""
        client = self._session.client("apigateway")
        for kind, response in gateway_responses().items():
            client.put_gateway_response(restApiId=api, responseType=kind, **response)
        client.create_deployment(restApiId=api, stageName=API_STAGE)
        throttles = {"/*/*": OTHERS} | {
            f"{encoded_path(path)}/{method}": throttle
            for (path, method), throttle in REST_THROTTLES.items()
        }
        changes = {"/*/*/metrics/enabled": "true"}
        for methods, throttle in throttles.items():
            rate, burst = settings[throttle.rate_parameter], settings[throttle.burst_parameter]
            changes[f"{methods}/throttling/rateLimit"] = str(float(rate))
            changes[f"{methods}/throttling/burstLimit"] = str(int(float(burst)))
        client.update_stage(
            restApiId=api,
            stageName=API_STAGE,
            patchOperations=[
                {"op": "replace", "path": path, "value": value} for path, value in changes.items()
            ],
        )

    def _limit_workers(self, limit: int) -> None:
        """Set how many workers Lambda runs at once; 0 means no limit."""
        client = self._session.client("lambda")
        worker = self._stage.function(WORKER)
        for mapping in client.list_event_source_mappings(FunctionName=worker)[
            "EventSourceMappings"
        ]:
            client.update_event_source_mapping(
                UUID=mapping["UUID"],
                ScalingConfig={"MaximumConcurrency": limit} if limit else {},
            )


def _forget_settings(client: Any, api: str, route_key: str) -> None:
    """Delete a route's settings, if it has any: an update of the stage would keep them."""
    if route_key in client.get_stage(ApiId=api, StageName=API_STAGE).get("RouteSettings", {}):
        client.delete_route_settings(ApiId=api, StageName=API_STAGE, RouteKey=route_key)


def _among(parameters: Mapping[str, str], names: Container[str]) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if name in names}


def kms_key_of(stage: Stage, session: boto3.Session) -> str | None:
    """Return the customer's key that `make resources` was given; None without one."""
    storage = _storage(stage, session)
    return storage.outputs().get("KmsKey") if storage.exists() else None


def _storage(stage: Stage, session: boto3.Session) -> Stack:
    return Stack(session, f"{stage.stack_name}-storage")


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
