"""The functions' IAM policies, compared with the AWS calls that the functions make."""

import json
import time
from contextlib import closing

import pytest

from gateway.aws.emulator import client
from infra.configuration import StageConfiguration
from infra.policies import policy
from infra.stage import FUNCTIONS, Stage
from tests.support.clients import SECRET, Client, configured, eventually, served, token
from tests.support.stub import Stub, stub

SIGNING = "arn:aws:secretsmanager:us-east-1:000000000000:secret:herald-signing"
ENCRYPTING = "arn:aws:secretsmanager:us-east-1:000000000000:secret:herald-encrypting"
MASTER_KEYS = json.dumps({"keys": [{"kty": "oct", "kid": "k", "k": "A" * 43}]})
VARIABLES = {"HERALD_JWT_SECRET_ARN": SIGNING, "HERALD_ENCRYPTION_KEYS_ARN": ENCRYPTING}
DEV = StageConfiguration(Stage("dev"), {"environment_variables": VARIABLES})
HANDLERS = {
    "on_ws_connect": "websocket_connect",
    "on_ws_message": "websocket_message",
    "on_ws_disconnect": "websocket_disconnect",
}
"""The functions that Chalice deploys under other names than those in `app.py`."""

NOT_BY_SDK = {"logs:CreateLogStream", "logs:PutLogEvents", "execute-api:ManageConnections"}
NOT_BY_THE_FUNCTION = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
"""Actions that Lambda takes with the function's role:
https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html#events-sqs-permissions"""
ON_LAMBDA_ALONE = {"sqs:GetQueueUrl"}
"""A deployed stage looks its queue up by name; the local gateway configures the URL."""

Rights = dict[str, set[tuple[str, str]]]
"""The actions of each function, each with its resource."""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Rights:
    """The calls of each function, recorded while every feature was used."""
    file = tmp_path_factory.mktemp("calls") / "calls"
    with stub() as stubbed:
        settings = configured(
            GATEWAY_CALLS_FILE=str(file),
            HERALD_JWT_SECRET="",
            GATEWAY_SCHEDULE_SECONDS="0.5",
            HERALD_INLINE_RECIPIENTS="3",
            HERALD_CONNECTION_LIMIT_POLICY="evict-oldest",
            HERALD_MAX_CONNECTIONS_PER_USER="2",
            HERALD_MANAGEMENT_ENDPOINT=stubbed.endpoint,
            HERALD_NOTIFY_TOPIC_ARN="arn:aws:sns:us-east-1:000000000000:herald-notices",
            HERALD_STALE_AFTER_SECONDS="1",
            **VARIABLES,
        )
        with served(settings) as running, closing(Client(running)) as herald:
            secrets = client("secretsmanager", running.aws)
            secrets.create_secret(Name="herald-signing", SecretString=SECRET)
            secrets.create_secret(Name="herald-encrypting", SecretString=MASTER_KEYS)
            do_everything(herald, stubbed)
    found: Rights = {function: set() for function in FUNCTIONS}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        function = HANDLERS.get(entry["function"], entry["function"])
        found[function].add((entry["action"], entry["resource"]))
    return found


def do_everything(herald: Client, stubbed: Stub) -> None:
    for user in ("alice", "bob", "bob", "bob", "carol"):  # bob exceeds his limit
        herald.connect(user, groups=["team", "room-*"])
    socket = herald.connect("dave", groups=["team", "room-*"])
    for frame in (
        {"action": "heartbeat"},
        {"action": "join", "group": "room-1"},
        {"action": "leave", "group": "room-1"},
        {"action": "refresh", "token": token("dave")},
        {"action": "send", "to": {"users": ["alice"]}, "data": 1},
        {"action": "send", "to": {"groups": ["team"]}, "data": 1},
        {"action": "send", "to": {"all": True}, "data": 1, "encrypt": True},
        {"action": "resume", "after": "0" * 26},
    ):
        socket.connection.send(json.dumps(frame))
    headers = {"Authorization": f"Bearer {token()}", "Idempotency-Key": "k"}
    for to in (
        {"users": ["bob"]},
        {"connections": [herald.connection_id("carol")]},
        {"groups": ["team"]},
        {"all": True},
    ):
        answer = herald.http.post(
            "/messages", json={"to": to, "data": 1, "encrypt": True}, headers=headers
        )
        headers["Idempotency-Key"] += "k"
        assert answer.status_code in (200, 202)
    queued = answer.json()["messages"][0]["id"]
    eventually(lambda: herald.http.get(f"/messages/{queued}", headers=headers).json()["done"])
    for behaviour, user in (("403", "alice"), (410, "carol")):
        stubbed.behaviours[herald.connection_id(user)] = [behaviour]
    herald.connect("alice")
    herald.report({"users": ["alice", "carol"]})
    for path in ("/users/bob", "/users/bob/connections", "/keys", "/health"):
        assert herald.http.get(path, headers=headers).status_code == 200
    herald.http.delete("/users/bob/connections", headers=headers)
    socket.connection.close()
    time.sleep(2.5)  # so that the sweep probes the remaining connections


def allowed(function: str) -> set[tuple[str, str]]:
    """Return the SDK calls that a function's policy allows: actions, each with its resource."""
    return {
        (action, statement["Resource"].rpartition("/")[2].rpartition(":")[2])
        for statement in policy(DEV, function)["Statement"]
        for action in statement["Action"]
        if action not in NOT_BY_SDK | NOT_BY_THE_FUNCTION | ON_LAMBDA_ALONE
        and not statement["Resource"].endswith("-??????")  # the same secret by another ARN
    }


def named(resource: str) -> str:
    """Return the name that a resource of the local gateway has in a stage's policies."""
    if resource == "herald-notices":
        return "herald-dev-*"
    if resource in ("herald-signing", "herald-encrypting"):
        return resource
    return resource.replace("herald-", "herald-dev-")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_functions_policy_allows_every_call_that_it_makes(calls: Rights, function: str) -> None:
    asked = {(action, named(resource)) for action, resource in calls[function]}
    assert asked - allowed(function) == set()


def test_the_policies_allow_only_calls_that_some_function_makes(calls: Rights) -> None:
    """Compares with the calls of all functions together.

    To compare each function alone would need every failure that a function handles.
    """
    asked = {(action, named(resource)) for every in calls.values() for action, resource in every}
    for function in FUNCTIONS:
        assert allowed(function) - asked == set()


def test_the_authorizers_only_fetch_keys(calls: Rights) -> None:
    keys = {("secretsmanager:GetSecretValue", "herald-signing")}
    assert calls["rest_authorizer"] | calls["connect_authorizer"] == keys
