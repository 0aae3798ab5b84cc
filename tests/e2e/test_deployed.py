"""A deployed stage: each function in its own process, behind the emulator's API Gateway, with real
clients; once deployed by CloudFormation and once by Chalice."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.stage import FUNCTIONS
from tests.e2e.deployment import Deployed, emulated
from tests.e2e.test_node import Node
from tests.support.clients import Client, eventually, token

SECONDS = 30.0
TICK = {
    "version": "0",
    "id": "tick",
    "account": "000000000000",
    "region": "us-east-1",
    "source": "aws.events",
    "detail-type": "Scheduled Event",
    "detail": {},
    "resources": [],
    "time": "2026-11-24T00:00:00Z",
}


def headers(user: str = "alice", **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user, **claims)}"}


def online(cloud: Client, user: str) -> int:
    answer = cloud.http.get(f"/users/{user}", headers=headers(user))
    return int(answer.json()["connections"])


def test_a_deployed_stage_is_healthy(cloud: Client) -> None:
    answer = cloud.http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_the_connect_route_asks_the_authorizer(deployed: Deployed) -> None:
    apis = deployed.client("apigatewayv2")
    routes = apis.get_routes(ApiId=deployed.websocket_api)["Items"]
    [authorizer] = apis.get_authorizers(ApiId=deployed.websocket_api)["Items"]
    [route] = [one for one in routes if one["RouteKey"] == "$connect"]
    assert route["AuthorizationType"] == "CUSTOM"
    assert route["AuthorizerId"] == authorizer["AuthorizerId"]
    assert re.search("[cC]onnect_?[aA]uthorizer", authorizer["AuthorizerUri"])


def test_the_ping_route_is_attached_as_the_parameter_says(deployed: Deployed) -> None:
    """Chalice removes it at each deployment, and `make resources` attaches it again."""

    def keys() -> list[str]:
        apis = deployed.client("apigatewayv2")
        routes = apis.get_routes(ApiId=deployed.websocket_api)["Items"]
        return sorted(route["RouteKey"] for route in routes)

    chalices = ["$connect", "$default", "$disconnect"]
    assert keys() == chalices
    if deployed.method == "cloudformation":
        return  # the emulator's CloudFormation has neither of the two kinds of responses
    for command, expected in (
        ("PingRoute=true", [*chalices, "ping"]),
        ("deploy", chalices),
        ("", [*chalices, "ping"]),
        ("PingRoute=false", chalices),
    ):
        if command == "deploy":
            deployed.chalice("deploy")
        else:
            deployed.command("resources", PARAMETERS=command)
        assert keys() == expected


def test_every_function_has_a_role_and_a_log_group_of_its_own(deployed: Deployed) -> None:
    """A packaged function logs to the group of its template; one of Chalice's, to Lambda's own."""
    functions = deployed.client("lambda").list_functions()["Functions"]
    assert len({one["Role"] for one in functions}) == len(functions) == len(FUNCTIONS)
    if deployed.method == "chalice":
        groups = {f"/aws/lambda/{one['FunctionName']}" for one in functions}
    else:
        groups = {one["LoggingConfig"]["LogGroup"] for one in functions}
        assert groups == {f"/herald/{deployed.stage}/{function}" for function in FUNCTIONS}
    logs = deployed.client("logs").describe_log_groups()["logGroups"]
    kept = {one["logGroupName"]: one.get("retentionInDays") for one in logs}
    assert {group: kept.get(group) for group in groups} == dict.fromkeys(groups, 30)


def test_the_alarms_are_deployed(deployed: Deployed) -> None:
    """Alarms over metric math have no effect in the emulator."""
    alarms = deployed.client("cloudwatch").describe_alarms()["MetricAlarms"]
    names = ("authorizer-errors", "dead-letters", "queue-age", "sweep-errors")
    assert {one["AlarmName"] for one in alarms} == {
        f"herald-{deployed.stage}-{name}" for name in names
    }


def test_a_parameter_that_is_not_given_keeps_its_value(deployed: Deployed) -> None:
    def throttling() -> list[float]:
        names = ["ThrottlingRate", "ThrottlingBurst"]
        if deployed.method == "chalice":
            apis = deployed.client("apigatewayv2")
            stage = apis.get_stage(ApiId=deployed.websocket_api, StageName="api")
            return [stage["DefaultRouteSettings"][f"{name}Limit"] for name in names]
        # The emulator's API Gateway doesn't show what CloudFormation sets.
        stacks = deployed.client("cloudformation")
        [stack] = stacks.describe_stacks(StackName="herald-prod")["Stacks"]
        values = {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
        return [float(values[name]) for name in names]

    before = deployed.running
    assert throttling() == [4000, 2500]  # the first by its deployment, the second by default
    deployed.deploy(ThrottlingBurst="2000")
    assert throttling() == [4000, 2000]
    assert deployed.running == before
    with pytest.raises(RuntimeError, match="Unknown parameter Nonsense; allowed: A"):
        deployed.deploy(Nonsense="1")


def test_a_stage_is_deployed_by_one_method_only(deployed: Deployed) -> None:
    other = {"chalice": "cloudformation", "cloudformation": "chalice"}[deployed.method]
    with pytest.raises(RuntimeError, match="was deployed by the other method; destroy it first"):
        deployed.command("deploy", "--with", other)
    if other == "chalice":
        with pytest.raises(
            RuntimeError, match="was deployed by the other method; destroy it first"
        ):
            deployed.command("resources")
        with pytest.raises(RuntimeError, match="`make deploy STAGE=prod` deploys it"):
            deployed.chalice("deploy")


def test_a_command_prints_a_token_that_the_stage_accepts(deployed: Deployed, cloud: Client) -> None:
    bearer = deployed.command("token", "peggy", "users:read").strip()
    answer = cloud.http.get("/users/bob", headers={"Authorization": f"Bearer {bearer}"})
    assert answer.status_code == 200


def test_a_wrong_token_is_refused(cloud: Client) -> None:
    assert cloud.http.get("/users/alice").status_code == 401
    wrong = headers(key="another-secret-of-more-than-32-bytes-it-is")
    assert cloud.http.get("/users/alice", headers=wrong).status_code == 401
    assert cloud.refusal() == 401
    assert cloud.refusal(headers=wrong) == 401
    assert cloud.refusal(headers=headers(scope="messages:send")) == 403
    assert cloud.http.get("/users/bob", headers=headers(scope="")).status_code == 403


def test_a_token_may_come_in_the_query_the_header_or_the_subprotocol(cloud: Client) -> None:
    bearer = token("mallory", tenant="handshakes")
    cloud.open(f"?token={bearer}")
    cloud.open(headers={"Authorization": f"Bearer {bearer}"})
    subprotocols = ["herald.v1", f"bearer.{bearer}"]
    assert cloud.refusal(subprotocols=subprotocols) == 429  # accepted, but one too many
    oscar = token("oscar", tenant="handshakes")
    socket = cloud.open(subprotocols=["herald.v1", f"bearer.{oscar}"])
    assert socket.connection.subprotocol == "herald.v1"
    assert cloud.refusal(subprotocols=["other.v1", f"bearer.{oscar}"]) == 400


def test_a_message_reaches_every_connection_of_a_user(cloud: Client) -> None:
    sockets = [cloud.connect("bob") for _ in range(2)]
    report = cloud.report({"users": ["bob"]}, "hello")
    assert (report["recipients"], report["delivered"]) == (2, 2)
    for socket in sockets:
        assert socket.messages() == ["hello"]
    assert sockets[0].ask({"action": "ping", "ref": "r"})["type"] == "pong"


def test_a_connection_over_the_limit_is_refused(cloud: Client) -> None:
    for _ in range(2):
        cloud.connect("carol")
    assert cloud.refusal(headers=headers("carol")) == 429
    assert online(cloud, "carol") == 2


def test_a_user_who_disconnects_is_offline(cloud: Client) -> None:
    socket = cloud.connect("erin")
    assert online(cloud, "erin") == 1
    socket.connection.close()
    eventually(lambda: online(cloud, "erin") == 0, SECONDS)


def test_a_message_to_many_goes_through_the_queue(cloud: Client) -> None:
    tenant = "queue"
    sockets = [cloud.connect(f"user-{number}", tenant=tenant) for number in range(3)]
    answer = cloud.post({"to": {"all": True}, "data": "to all"}, tenant=tenant)
    assert answer.status_code == 202
    for socket in sockets:
        assert socket.messages() == ["to all"]
    path = f"/messages/{answer.json()['messages'][0]['id']}"
    mine = headers(tenant=tenant)
    eventually(lambda: cloud.http.get(path, headers=mine).json()["done"], SECONDS)
    progress = cloud.http.get(path, headers=mine).json()
    assert (progress["recipients"], progress["delivered"]) == (3, 3)


def test_a_user_over_the_rate_limit_is_told_to_wait(cloud: Client) -> None:
    body = {"to": {"users": ["nobody"]}, "data": 1}
    answers = [cloud.post(body, "frank") for _ in range(21)]
    assert [answer.status_code for answer in answers] == [200] * 20 + [429]
    assert answers[-1].json()["code"] == "rate_limited"
    assert int(answers[-1].headers["Retry-After"]) >= 1


def test_a_message_is_sent_and_a_group_joined_over_a_websocket(cloud: Client) -> None:
    grace = cloud.connect("grace", groups=["room-*"])
    heidi = cloud.connect("heidi", groups=["room-*"])
    for socket in (grace, heidi):
        assert socket.ask({"action": "join", "group": "room-1"})["type"] == "joined"
    grace.connection.send(
        json.dumps({"action": "send", "to": {"groups": ["room-1"]}, "data": "in the room"})
    )
    frames = sorted([grace.receive(), grace.receive()], key=lambda frame: frame["type"])
    assert [frame["type"] for frame in frames] == ["ack", "messages"]
    assert frames[0]["delivered"] == 2
    assert heidi.messages() == ["in the room"]


def test_the_sweep_counts_the_connections(deployed: Deployed, cloud: Client) -> None:
    cloud.connect("ivan")
    functions = deployed.client("lambda")
    [name] = [
        one["FunctionName"]
        for one in functions.list_functions()["Functions"]
        if one["Handler"] == "app.sweep"
    ]
    answer = functions.invoke(FunctionName=name, Payload=json.dumps(TICK))
    assert "FunctionError" not in answer, answer["Payload"].read()
    counts = [
        int(item["active"]["N"])
        for number in range(4)
        if "active"
        in (
            item := deployed.client("dynamodb").get_item(
                TableName=f"herald-{deployed.stage}-users",
                Key={"user": {"S": f"sweep-connections-{number}"}},
            )["Item"]
        )
    ]
    assert len(counts) == 4
    assert sum(counts) >= 1


def test_a_client_in_node_receives_messages(deployed: Deployed, cloud: Client) -> None:
    node = Node(deployed.running.websocket)
    assert node.open() == [0, "refused", 401]
    assert node.open(headers=headers("judy")) == [1, "open", ""]
    assert cloud.report({"users": ["judy"]}, "for node")["delivered"] == 1
    number, kind, text = node.event()
    assert (number, kind) == (1, "message")
    assert json.loads(text)["messages"][0]["data"] == "for node"
    node.process.communicate(timeout=10)


def test_the_remains_of_a_failed_first_deployment_can_be_destroyed(
    packaged: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "herald"
    shutil.copytree(packaged.parent, checkout)
    (checkout / "app.py").write_text("raise RuntimeError('no app')\n")
    with emulated() as endpoint:
        aws = Deployed(endpoint, checkout, "half", "chalice")
        with pytest.raises(RuntimeError, match="`chalice deploy` failed; its own message is above"):
            aws.deploy()
        assert len(aws.client("dynamodb").list_tables()["TableNames"]) == 5
        with pytest.raises(RuntimeError, match="was deployed by the other method"):
            aws.command("deploy", "--with", "cloudformation")
        aws.destroy()
        assert aws.client("dynamodb").list_tables()["TableNames"] == []
        assert aws.client("sqs").list_queues().get("QueueUrls", []) == []
        assert aws.client("s3").list_buckets()["Buckets"] == []
