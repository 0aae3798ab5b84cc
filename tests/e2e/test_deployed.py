"""The stage as CloudFormation deploys it: every function in a process of its own, behind the
emulator's API Gateway, with real clients."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.deploy import DeploymentError
from tests.clients import Client, eventually, token
from tests.e2e.deployment import Deployed
from tests.e2e.test_node import Node

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


def test_everything_is_there(cloud: Client) -> None:
    answer = cloud.http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_to_deploy_again_changes_nothing(deployed: Deployed, packaged: Path) -> None:
    before = deployed.outputs
    deployed.deploy(packaged, "prod")
    assert deployed.outputs == before


def test_a_parameter_stays_as_it_was_set(deployed: Deployed, packaged: Path) -> None:
    def rate() -> str:
        [stack] = deployed.client("cloudformation").describe_stacks(StackName="herald-prod")[
            "Stacks"
        ]
        values = {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
        return values["ThrottlingRate"]

    deployed.deploy(packaged, "prod", ThrottlingRate="4000")
    assert rate() == "4000"
    deployed.deploy(packaged, "prod", ThrottlingBurst="2000")
    assert rate() == "4000"
    with pytest.raises(DeploymentError, match="Nonsense is no parameter; there are AccessLogs"):
        deployed.deploy(packaged, "prod", Nonsense="1")


def test_who_has_no_right_token_gets_nowhere(cloud: Client) -> None:
    """At a handshake the emulator says 500 for a raised `Unauthorized`, where AWS says 401."""
    assert cloud.http.get("/users/alice").status_code == 401
    wrong = headers(key="another-secret-of-more-than-32-bytes-it-is")
    assert cloud.http.get("/users/alice", headers=wrong).status_code == 401
    assert cloud.refusal(headers=wrong) in (401, 500)
    assert cloud.refusal(headers=headers(scope="messages:send")) == 403
    assert cloud.http.get("/users/bob", headers=headers(scope="")).status_code == 403


def test_a_message_reaches_every_connection_of_a_user(cloud: Client) -> None:
    sockets = [cloud.connect("bob") for _ in range(2)]
    report = cloud.report({"users": ["bob"]}, "hello")
    assert (report["recipients"], report["delivered"]) == (2, 2)
    for socket in sockets:
        assert socket.messages() == ["hello"]
    assert sockets[0].ask({"action": "ping", "ref": "r"})["type"] == "pong"


def test_a_connection_too_many_is_refused(cloud: Client) -> None:
    """The emulator says 403 whatever `$connect` says, where AWS says the same: here 429."""
    for _ in range(2):
        cloud.connect("carol")
    assert cloud.refusal(headers=headers("carol")) in (403, 429)
    assert online(cloud, "carol") == 2


def test_who_leaves_is_gone(cloud: Client) -> None:
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


def test_who_sends_too_much_is_told_to_wait(cloud: Client) -> None:
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


def test_the_sweep_runs_and_counts(deployed: Deployed, cloud: Client) -> None:
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
                TableName="herald-prod-users",
                Key={"user": {"S": f"sweep-connections-{number}"}},
            )["Item"]
        )
    ]
    assert len(counts) == 4
    assert sum(counts) >= 1


def test_node_hears_the_same(deployed: Deployed, cloud: Client) -> None:
    """With the token in a header: the emulator asks no authorizer without one."""
    node = Node(deployed.running.websocket)
    assert node.open() == [0, "refused", 401]
    assert node.open(headers=headers("judy")) == [1, "open", ""]
    assert cloud.report({"users": ["judy"]}, "for node")["delivered"] == 1
    number, kind, text = node.event()
    assert (number, kind) == (1, "message")
    assert json.loads(text)["messages"][0]["data"] == "for node"
    node.process.communicate(timeout=10)
