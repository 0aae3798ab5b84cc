"""The route `ping`: the same definition as resources of a template and as API calls."""

import json
import re
from collections.abc import Callable
from typing import Any

import boto3
import pytest

from infra.chalice_deployment import ChaliceDeployment
from infra.configuration import StageConfiguration
from infra.mock_routes import PING, attach, detach, resources
from infra.parameters import API_SETTINGS
from infra.stage import API_STAGE, Stage

DEFAULTS = {name: str(setting["Default"]) for name, setting in API_SETTINGS.items()}


class Recorder:
    """An SDK client of `apigatewayv2` that records the calls before it makes them."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**parameters: Any) -> Any:
            self.calls.append((name, parameters))
            return getattr(self.client, name)(**parameters)

        return call

    def named(self, name: str) -> list[Any]:
        return [parameters for called, parameters in self.calls if called == name]


@pytest.fixture
def client(session: boto3.Session) -> Any:
    return session.client("apigatewayv2")


@pytest.fixture
def api(client: Any) -> str:
    """An API with the routes that Chalice makes."""
    selection = "$request.body.action"
    made = client.create_api(Name="a", ProtocolType="WEBSOCKET", RouteSelectionExpression=selection)
    api = str(made["ApiId"])
    for key in ("$connect", "$default", "$disconnect"):
        integration = client.create_integration(ApiId=api, IntegrationType="AWS_PROXY")
        target = f"integrations/{integration['IntegrationId']}"
        client.create_route(ApiId=api, RouteKey=key, Target=target)
    client.create_stage(ApiId=api, StageName=API_STAGE)
    return api


def keys(client: Any, api: str) -> list[str]:
    return sorted(route["RouteKey"] for route in client.get_routes(ApiId=api)["Items"])


def test_an_attached_route_has_its_integration_and_both_responses(client: Any, api: str) -> None:
    recorder = Recorder(client)
    attach(recorder, api, PING)
    for kind, properties in PING.items():
        operation = "create" + re.sub("([A-Z])", r"_\1", kind).lower()
        [given] = recorder.named(operation)
        assert {**given, **properties} == given
    [route] = [one for one in client.get_routes(ApiId=api)["Items"] if one["RouteKey"] == "ping"]
    integration = {"ApiId": api, "IntegrationId": route["Target"].removeprefix("integrations/")}
    assert client.get_integration(**integration)["IntegrationType"] == "MOCK"
    assert len(client.get_integration_responses(**integration)["Items"]) == 1
    assert len(client.get_route_responses(ApiId=api, RouteId=route["RouteId"])["Items"]) == 1


def test_attaching_a_route_again_leaves_one(client: Any, api: str) -> None:
    attach(client, api, PING)
    attach(client, api, PING)
    assert keys(client, api) == ["$connect", "$default", "$disconnect", "ping"]
    assert len(client.get_integrations(ApiId=api)["Items"]) == 4


def test_detaching_a_route_leaves_the_others(client: Any, api: str) -> None:
    detach(client, api, PING)
    attach(client, api, PING)
    detach(client, api, PING)
    assert keys(client, api) == ["$connect", "$default", "$disconnect"]
    assert len(client.get_integrations(ApiId=api)["Items"]) == 3


def test_a_template_has_the_parameters_of_the_api_calls() -> None:
    made = resources("Ping", PING, "HasPingRoute")
    assert made.keys() == {f"Ping{kind}" for kind in PING}
    for kind, properties in PING.items():
        resource = made[f"Ping{kind}"]
        assert resource["Type"] == f"AWS::ApiGatewayV2::{kind}"
        assert resource["Condition"] == "HasPingRoute"
        assert {**resource["Properties"], **properties} == resource["Properties"]
    refers = {kind: json.dumps(made[f"Ping{kind}"]["Properties"]) for kind in PING}
    assert '{"Ref": "PingIntegration"}' in refers["IntegrationResponse"]
    assert '["integrations", {"Ref": "PingIntegration"}]' in refers["Route"]
    assert '{"Ref": "PingRoute"}' in refers["RouteResponse"]


# --- After `chalice deploy`


def finish(client: Any, api: str, **settings: str) -> Recorder:
    """Set up an API as the step after `chalice deploy` does, and return its calls."""
    recorder = Recorder(client)

    class Session(boto3.Session):
        def client(self, *names: Any, **options: Any) -> Any:
            return recorder if names == ("apigatewayv2",) else super().client(*names, **options)

    session = Session(region_name="us-east-1")
    deployment = ChaliceDeployment(StageConfiguration(Stage("dev")), session)
    deployment._finish_websocket_api(api, "authorizer", {**DEFAULTS, **settings})
    return recorder


def test_the_route_is_deployed_before_its_throttle_is_set(client: Any, api: str) -> None:
    """API Gateway refuses settings of a route that doesn't exist."""
    recorder = finish(client, api, PingThrottlingRate="7")
    assert keys(client, api) == ["$connect", "$default", "$disconnect", "ping"]
    order = [name for name, _ in recorder.calls]
    assert order.index("create_route_response") < order.index("create_deployment")
    deployed, throttled = recorder.named("update_stage")
    assert deployed.keys() == {"ApiId", "StageName", "DeploymentId"}
    assert throttled["RouteSettings"]["ping"] == {
        "ThrottlingRateLimit": 7.0,
        "ThrottlingBurstLimit": 2500,
        "DetailedMetricsEnabled": True,
    }


def test_without_the_parameter_the_route_and_its_throttle_go(client: Any, api: str) -> None:
    finish(client, api)
    recorder = finish(client, api, PingRoute="false")
    assert keys(client, api) == ["$connect", "$default", "$disconnect"]
    [forgotten] = recorder.named("delete_route_settings")
    assert forgotten == {"ApiId": api, "StageName": API_STAGE, "RouteKey": "ping"}
    _, throttled = recorder.named("update_stage")
    assert throttled["RouteSettings"].keys() == {"$connect"}


def test_the_routes_setting_is_kept_until_another_is_given(session: boto3.Session) -> None:
    deployment = ChaliceDeployment(StageConfiguration(Stage("keeping")), session)
    deployment._bucket.create()
    assert deployment._settings({})["PingRoute"] == "true"
    assert deployment._settings({"PingRoute": "false"})["PingRoute"] == "false"
    assert deployment._settings({"ThrottlingRate": "9"})["PingRoute"] == "false"
    assert deployment._settings({})["ThrottlingRate"] == "9"
