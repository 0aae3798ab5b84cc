"""Deploys a stage by `chalice deploy`, and takes it away again.

A stack of what the functions need comes before it, and one of what Chalice lacks after it, with a
few calls for what no stack can change because Chalice made it. Until those are done, `$connect` has
no authorizer and verifies tokens by itself: Chalice makes its routes anew each time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3

from infra.cloudformation import Bucket, DeploymentError, Stack
from infra.deploy import delete_tables
from infra.stage import FUNCTIONS, WORKER, Stage
from infra.template import PARAMETERS, edge, gateway_responses, storage

API_STAGE = "api"  # Chalice's name for it
RECORD = "deployed.json"

Made = dict[str, dict[str, Any]]
"""What Chalice made, by its names."""


class DirectDeployment:
    """A stage of `chalice deploy`, in the account and the region of a session.

    Chalice's own record of what it made is kept in the stage's bucket, so that any machine can go
    on from it.
    """

    def __init__(self, stage: Stage, session: boto3.Session) -> None:
        self._stage = stage
        self._session = session
        self._bucket = Bucket(session, f"herald-{stage.name}")
        self._before = Stack(session, f"herald-{stage.name}-storage")
        self._after = Stack(session, f"herald-{stage.name}-edge")

    @property
    def exists(self) -> bool:
        """Whether the stage was deployed so."""
        return self._before.exists

    def deploy(self, folder: Path, parameters: Mapping[str, str]) -> dict[str, str]:
        """Deploy the app that was built in `folder`; outputs as a template's deployment has them.

        Raises DeploymentError.
        """
        self._bucket.make()
        before = self._before.apply(storage(self._stage), self._bucket, {})
        _tell_queue(folder, self._stage, before["FanoutQueueURL"])
        made = self._chalice("deploy", folder)
        rest, websocket = made["rest_api"], made["websocket_api"]["websocket_api_id"]
        names = {logical_id: _name(made[name]) for name, logical_id in FUNCTIONS.items()}
        given = {**names, "WebsocketAPI": websocket}
        if "AlarmTopic" in parameters:
            given["AlarmTopic"] = parameters["AlarmTopic"]
        authorizer = self._after.apply(edge(self._stage), self._bucket, given)["TokenAuthorizerId"]
        throttling = self._throttling(websocket, parameters)
        self._finish_functions(names)
        self._finish_websocket_api(websocket, authorizer, throttling)
        self._finish_rest_api(rest["rest_api_id"], throttling)
        return {
            "EndpointURL": rest["rest_api_url"],
            "RestAPIId": rest["rest_api_id"],
            "WebsocketConnectEndpointURL": made["websocket_api"]["websocket_api_url"],
            "WebsocketAPIId": websocket,
        }

    def destroy(self, folder: Path) -> None:
        """Delete all of it: what Chalice made first, since its routes hold the authorizer."""
        if self._bucket.read(RECORD) is not None:  # or else its first deployment has failed
            self._chalice("delete", folder)
        self._after.delete()
        self._before.delete()
        delete_tables(self._stage, self._session)
        self._bucket.delete()

    def _chalice(self, command: str, folder: Path) -> Made:
        """Run `chalice deploy` or `delete`, and keep its record."""
        record = folder / ".chalice" / "deployed" / f"{self._stage.name}.json"
        if (content := self._bucket.read(RECORD)) is not None:
            record.parent.mkdir(exist_ok=True)
            record.write_bytes(content)
        chalice = Path(sys.executable).with_name("chalice")
        environment = {"AWS_DEFAULT_REGION": self._session.region_name, **os.environ}
        ended = subprocess.run(
            [chalice, command, "--stage", self._stage.name],
            cwd=folder,
            env=environment,
            check=False,
        )
        if ended.returncode:
            raise DeploymentError(f"chalice {command} failed, for the reason above")
        content = record.read_bytes()
        self._bucket.write(RECORD, content)
        return {one["name"]: one for one in json.loads(content)["resources"]}

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

    def _finish_functions(self, names: Mapping[str, str]) -> None:
        """Where each logs; and that SQS hears of each failed job alone."""
        functions = self._session.client("lambda")
        for name, logical_id in FUNCTIONS.items():
            functions.update_function_configuration(
                FunctionName=names[logical_id],
                LoggingConfig={"LogGroup": self._stage.log_group(name)},
            )
        [source] = functions.list_event_source_mappings(FunctionName=names[WORKER])[
            "EventSourceMappings"
        ]
        functions.update_event_source_mapping(
            UUID=source["UUID"], FunctionResponseTypes=["ReportBatchItemFailures"]
        )

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


def _name(function: Mapping[str, Any]) -> str:
    """A function's name is the end of its ARN."""
    name: str = function["lambda_arn"].rpartition(":")[2]
    return name


def _tell_queue(folder: Path, stage: Stage, url: str) -> None:
    """Put the queue's URL in the place of its name alone, now that it is known."""
    path = folder / ".chalice" / "config.json"
    config = json.loads(path.read_text())
    config["stages"][stage.name]["environment_variables"]["HERALD_FANOUT_QUEUE_URL"] = url
    path.write_text(json.dumps(config, indent=2))
