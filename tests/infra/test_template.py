"""The templates of the resources that Chalice doesn't create."""

import re
from typing import Any

import pytest

import app
from infra.apis import ACCESS_LOG, REST_ACCESS_LOG
from infra.configuration import StageConfiguration
from infra.parameters import HEALTH, OTHERS, PARAMETERS, READS, REST_THROTTLES, WEBSOCKET_THROTTLES
from infra.stage import FUNCTIONS, Stage
from infra.template import CALLED_BY_CLIENTS, edge_template, merge_template, storage_template

DEV = StageConfiguration(Stage("dev"))
MERGED: Any = merge_template(DEV)
RESOURCES: Any = MERGED["Resources"]


def properties(logical_id: str) -> Any:
    return RESOURCES[logical_id]["Properties"]


def test_access_logs_contain_nothing_that_a_client_sent() -> None:
    for fields in (ACCESS_LOG, REST_ACCESS_LOG):
        assert all(re.fullmatch(r"\$context\.[A-Za-z.]+", variable) for variable in fields.values())
        assert not re.search("header|query|path(?!$)|protocol", " ".join(fields.values()))


def test_building_a_template_changes_no_definition() -> None:
    assert merge_template(DEV) == merge_template(DEV)


# --- Limits


def test_every_rest_route_but_the_one_that_sends_has_limits_of_its_own() -> None:
    """A route with limits must exist, since API Gateway refuses the settings of any other.

    https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-request-throttling.html
    """
    routes = {(path, method) for path, methods in app.app.routes.items() for method in methods}
    assert REST_THROTTLES.keys() == routes - {("/messages", "POST")}


def test_a_route_without_a_token_has_the_lowest_limits() -> None:
    open_routes = {
        (path, method)
        for path, methods in app.app.routes.items()
        for method, route in methods.items()
        if route.authorizer is None
    }
    assert {REST_THROTTLES[route] for route in open_routes} == {HEALTH}
    assert HEALTH.rate < READS.rate / 10 < OTHERS.rate / 10


def test_the_rest_stage_has_a_throttle_for_each_of_these_routes() -> None:
    """https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-properties-apigateway-stage-methodsetting.html"""
    settings = {
        (one["ResourcePath"], one["HttpMethod"]): one["ThrottlingRateLimit"]["Ref"]
        for one in properties("RestAPI")["MethodSettings"]
    }
    assert settings["/*", "*"] == "ThrottlingRate"
    assert settings["/~1health", "GET"] == "HealthThrottlingRate"
    assert settings["/~1users~1{user_id}~1connections", "DELETE"] == "ReadThrottlingRate"
    assert len(settings) == 1 + len(REST_THROTTLES)


def test_the_websocket_stage_sets_its_routes_limits_only_once_the_routes_exist() -> None:
    """https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigatewayv2-stage.html"""
    stage = RESOURCES["WebsocketAPIStage"]
    assert {route for route in stage["DependsOn"] if route.endswith("Route")} == {
        "WebsocketConnectRoute",
        "WebsocketMessageRoute",
        "WebsocketDisconnectRoute",
    }
    implied = {"Fn::Sub": "Its route ${WebsocketPingRoute} answers pings"}
    assert stage["Properties"]["Description"]["Fn::If"][:2] == ["HasPingRoute", implied]
    settings = stage["Properties"]["RouteSettings"]
    assert settings.keys() == WEBSOCKET_THROTTLES.keys() == {"$connect", "ping"}
    condition, of_ping, otherwise = settings["ping"]["Fn::If"]
    assert (condition, otherwise) == ("HasPingRoute", {"Ref": "AWS::NoValue"})
    for route in (settings["$connect"], of_ping, stage["Properties"]["DefaultRouteSettings"]):
        assert route.keys() == {
            "ThrottlingRateLimit",
            "ThrottlingBurstLimit",
            "DetailedMetricsEnabled",
        }


def test_the_ping_route_is_on_unless_the_parameter_says_otherwise() -> None:
    assert PARAMETERS["PingRoute"]["Default"] == "true"
    assert MERGED["Conditions"]["HasPingRoute"] == {"Fn::Equals": [{"Ref": "PingRoute"}, "true"]}
    ping = {name for name, one in RESOURCES.items() if one.get("Condition") == "HasPingRoute"}
    kinds = ("Integration", "IntegrationResponse", "Route", "RouteResponse")
    assert ping == {f"WebsocketPing{kind}" for kind in kinds}
    assert not RESOURCES.keys() & PARAMETERS.keys()


def test_workers_leave_concurrency_to_the_functions_that_clients_call() -> None:
    """https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html"""
    events = properties("DeliverQueued")["Events"]["DeliverQueuedSqsEventSource"]["Properties"]
    assert events["ScalingConfig"]["Fn::If"][:2] == [
        "HasWorkerConcurrency",
        {"MaximumConcurrency": {"Ref": "WorkerConcurrency"}},
    ]
    assert 2 <= PARAMETERS["WorkerConcurrency"]["Default"] <= 1000


def test_concurrency_can_be_reserved_for_each_function_that_clients_call() -> None:
    reserved = {
        name
        for name, logical_id in FUNCTIONS.items()
        if "ReservedConcurrentExecutions" in properties(logical_id)
    }
    assert reserved == set(CALLED_BY_CLIENTS)
    assert PARAMETERS["ReservedConcurrency"]["Default"] == 0


def test_chalices_own_reserved_concurrency_wins() -> None:
    own = {"lambda_functions": {"api_handler": {"reserved_concurrency": 5}}}
    configured: Any = merge_template(StageConfiguration(Stage("dev"), own))
    of_function = configured["Resources"]["APIHandler"]["Properties"]
    assert "ReservedConcurrentExecutions" not in of_function


@pytest.mark.parametrize("template", [merge_template, edge_template])
def test_a_web_acl_protects_the_rest_api_alone(template: Any) -> None:
    """WAF knows no WebSocket APIs:
    https://docs.aws.amazon.com/waf/latest/developerguide/how-aws-waf-works-resources.html
    """
    association = template(DEV)["Resources"]["WebACLAssociation"]
    assert association["Condition"] == "HasWebACL"
    arn = association["Properties"]["ResourceArn"]["Fn::Sub"]
    assert "/restapis/${RestAPI}/stages/" in arn
    assert PARAMETERS["WebACL"]["Default"] == ""


# --- The customer's key


@pytest.mark.parametrize("template", [merge_template, storage_template])
def test_a_customers_key_encrypts_tables_queues_and_secrets(template: Any) -> None:
    key = {"Fn::If": ["HasKmsKey", {"Ref": "KmsKey"}, {"Ref": "AWS::NoValue"}]}
    for resource in template(DEV)["Resources"].values():
        given = resource.get("Properties", {})
        match resource.get("Type"):
            case "AWS::DynamoDB::Table":
                assert given["SSESpecification"]["KMSMasterKeyId"] == key
            case "AWS::SQS::Queue":
                assert given["KmsMasterKeyId"] == key
                assert given["SqsManagedSseEnabled"] == {"Fn::If": ["HasKmsKey", False, True]}
            case "AWS::SecretsManager::Secret":
                assert given["KmsKeyId"] == key


@pytest.mark.parametrize("template", [merge_template, storage_template, edge_template])
def test_a_templates_parameters_and_conditions_are_used_and_defined(template: Any) -> None:
    written = template(DEV)
    text = str({**written, "Parameters": {}})
    for name in written["Parameters"]:
        assert re.search(rf"'Ref': '{name}'|\$\{{{name}\}}", text), name
    for name in written["Conditions"]:
        assert re.search(rf"'Fn::If': \['{name}'|'Condition': '{name}'", text), name
    for name in re.findall(r"'Fn::If': \['(\w+)'|'Condition': '(\w+)'", text):
        assert "".join(name) in written["Conditions"]
