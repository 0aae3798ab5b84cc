"""The policies of the app's authorizers, as API Gateway evaluates them."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from chalicelib.auth.principal import Principal
from gateway.api.authorization import allows
from gateway.api.events import RestRequest
from gateway.configuration import PROJECT
from gateway.functions.runtime import REST_FUNCTION
from tests.support.clients import SECRET, token
from tests.support.key_server import KeyPair

API = "arn:aws:execute-api:eu-west-1:123456789012:abcdef1234/prod"
WEBSOCKET_API = "arn:aws:execute-api:eu-west-1:123456789012:ghijkl5678/prod"

INVOKE = """
import json, sys, app
from gateway.functions.runtime import LambdaContext, handle
from gateway.functions.declarations import declarations
requests = json.loads(sys.argv[1])
context = {"requestId": "-", "seconds": 10}
responses = [handle(app, {**context, "function": name, "event": event}) for name, event in requests]
print(json.dumps([declarations(app.app), *responses]))
"""


def invoke(*requests: tuple[str, dict[str, Any]], **environment: str) -> list[Any]:
    """Return what the app declares and the results of functions, from a process of their own."""
    declared, *responses = json.loads(printed(*requests, **environment).splitlines()[-1])
    return [declared, *(response.get("result", response.get("error")) for response in responses)]


def printed(*requests: tuple[str, dict[str, Any]], script: str = INVOKE, **environment: str) -> str:
    variables = {"PATH": os.environ["PATH"], "HERALD_JWT_SECRET": SECRET, **environment}
    return subprocess.run(
        [sys.executable, "-c", script, json.dumps(requests)],
        cwd=PROJECT,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def rest_event(method: str, path: str, bearer: str) -> tuple[str, dict[str, Any]]:
    event = {
        "type": "TOKEN",
        "methodArn": f"{API}/{method}{path}",
        "authorizationToken": f"Bearer {bearer}",
    }
    return "rest_authorizer", event


def connect_event(bearer: str) -> tuple[str, dict[str, Any]]:
    context = {
        "connectionId": "a",
        "connectedAt": 1,
        "domainName": "d",
        "stage": "prod",
        "identity": {"sourceIp": "127.0.0.1"},
    }
    event = {
        "type": "REQUEST",
        "methodArn": f"{WEBSOCKET_API}/$connect",
        "headers": {"Authorization": f"Bearer {bearer}"},
        "requestContext": context,
    }
    return "connect_authorizer", event


def test_a_policy_allows_heralds_routes_and_nothing_else() -> None:
    """API Gateway caches a policy for the token's other requests, so it must allow them all."""
    good = token("alice", scope="")
    declared, *results = invoke(
        rest_event("GET", "/users/alice", good), rest_event("POST", "/messages", good)
    )
    guarded = {
        (method, path)
        for path, methods in declared["routes"].items()
        for method, authorizer in methods.items()
        if authorizer is not None
    }
    assert ("POST", "/messages") in guarded
    for result in results:
        assert result["principalId"] == "alice"
        policy = result["policyDocument"]
        for method, path in guarded:
            called = path.replace("{", "").replace("}", "%2F*?")
            assert allows(policy, f"{API}/{method}{called}")
        for arn in (
            f"{API}/GET/health",
            f"{API}/GET/messages",
            f"{API}/DELETE/messages",
            f"{API}/POST/users/alice",
            f"{API}/GET/",
            f"{API}/GET/test-invoke-stage",
            f"{API.replace('/prod', '/dev')}/POST/messages",
            f"{API.replace('abcdef1234', 'abcdef1235')}/POST/messages",
            f"{WEBSOCKET_API}/$connect",
            f"{WEBSOCKET_API}/POST/@connections/abc=",
        ):
            assert not allows(policy, arn)


def test_a_connections_policy_allows_only_its_handshake() -> None:
    _, allowed, denied = invoke(
        connect_event(token("alice")), connect_event(token("alice", scope="messages:send"))
    )
    [statement] = allowed["policyDocument"]["Statement"]
    assert statement["Resource"] == f"{WEBSOCKET_API}/$connect"
    assert allowed["context"]["userId"] == "alice"
    assert not allows(denied["policyDocument"], f"{WEBSOCKET_API}/$connect")
    assert denied["principalId"] != "alice"
    assert "context" not in denied


@pytest.mark.parametrize("bad", ["", "x", "a.b.c", token(exp=1), token(key="k" * 32)])
def test_a_bad_token_raises_exactly_unauthorized(bad: str) -> None:
    """API Gateway answers 401 for this text, and 500 for any other."""
    _, rest, connect = invoke(rest_event("GET", "/users/a", bad), connect_event(bad))
    assert rest["errorMessage"] == connect["errorMessage"] == "Unauthorized"


def test_unreachable_keys_are_not_reported_as_a_bad_token() -> None:
    """500 tells a client to try again; 401 says that its token is bad."""
    environment = {"HERALD_JWT_SECRET": "", "HERALD_JWKS_URL": "http://127.0.0.1:9/jwks.json"}
    bearer = KeyPair.new("ES256", "a").token()
    _, rest, connect = invoke(
        rest_event("GET", "/users/a", bearer), connect_event(bearer), **environment
    )
    assert rest["errorType"] == connect["errorType"] == "Unavailable"
    assert bearer not in str((rest, connect))


def test_the_authorizers_load_no_library_for_encryption() -> None:
    """They verify tokens with PyJWT. joserfc would only lengthen their cold starts."""
    bearer = token("alice")
    loaded = printed(
        rest_event("GET", "/users/alice", bearer),
        connect_event(bearer),
        script=INVOKE + "print(*sys.modules)",
    ).split()
    assert "jwt" in loaded
    assert [name for name in loaded if name.startswith("joserfc")] == []


def test_a_cached_verdict_does_not_outlive_its_token() -> None:
    """API Gateway caches a verdict for five minutes, so handlers check the expiry themselves."""
    principal = Principal("alice", expires_at=int(time.time()) - 1)
    request = RestRequest(
        method="GET",
        path="/users/alice",
        resource="/users/{user_id}",
        path_parameters={"user_id": "alice"},
        query="",
        headers=[],
        body=b"",
        source_ip="127.0.0.1",
        domain_name="example.com",
        port=443,
    )
    _, response = invoke((REST_FUNCTION, request.proxy(principal.to_context(), [])))
    assert response["statusCode"] == 401
    assert json.loads(response["body"])["code"] == "token_expired"
    assert response["headers"]["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_an_identity_provider_without_an_audience_causes_a_warning() -> None:
    warning = "HERALD_JWKS_URL is set without HERALD_JWT_AUDIENCE"
    provider = {"HERALD_JWKS_URL": "https://example.com/jwks.json"}
    assert warning in printed(**provider)
    assert warning not in printed(**provider, HERALD_JWT_AUDIENCE="herald")
    assert warning not in printed()


def _statement(effect: str, resource: Any, action: Any = "execute-api:Invoke") -> dict[str, Any]:
    return {"Effect": effect, "Action": action, "Resource": resource}


@pytest.mark.parametrize(
    ("statements", "allowed"),
    [
        (_statement("Allow", "arn:x/GET/*"), True),
        ([_statement("Allow", ["arn:y", "arn:?/GET/a"], ["*"])], True),
        ([_statement("Allow", "*"), _statement("Deny", "arn:x/GET/a")], False),
        ([_statement("Allow", "arn:[x]/GET/a")], False),
        ([_statement("Allow", "*", "s3:GetObject")], False),
        ([], False),
    ],
)
def test_deny_wins_over_allow_and_is_the_default(statements: Any, allowed: bool) -> None:
    assert allows({"Statement": statements}, "arn:x/GET/a") == allowed
