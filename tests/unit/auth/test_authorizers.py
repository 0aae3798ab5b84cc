"""The results that API Gateway understands."""

import json

import pytest
from chalice.app import AuthRoute, Chalice
from chalice.local import NotAuthorizedError

from chalicelib import aws_limits
from chalicelib.auth.authorizers import allow, deny, routes, unauthorized
from chalicelib.auth.principal import Principal
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.errors import Unauthorized
from chalicelib.settings import Settings
from tests.support.jwts import CLAIMS, SECRET, by_hand

ARN = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/prod/$connect"


def test_a_result_that_allows_has_the_principal_as_its_context() -> None:
    principal = Principal("alice", expires_at=100, tenant="acme")
    result = allow(ARN, principal)
    [statement] = result["policyDocument"]["Statement"]
    assert (statement["Effect"], statement["Resource"]) == ("Allow", ARN)
    assert result["principalId"] == "alice"
    assert Principal.from_context(result["context"]) == principal


def test_a_result_that_denies_has_no_context() -> None:
    result = deny(ARN)
    [statement] = result["policyDocument"]["Statement"]
    assert (statement["Effect"], statement["Resource"]) == ("Deny", ARN)
    assert "context" not in result


def test_guarded_routes_are_listed_with_asterisks_for_their_parameters() -> None:
    app = Chalice("test")
    authorizer = app.authorizer()(lambda request: None)
    app.route("/users/{user_id}", methods=["GET", "PUT"], authorizer=authorizer)(lambda user_id: "")
    app.route("/health", methods=["GET"])(lambda: "")
    listed = {
        route.path: sorted(route.methods) for route in routes(app) if isinstance(route, AuthRoute)
    }
    assert listed == {"/users/*": ["GET", "PUT"], "/health": []}


def test_the_exception_for_401_has_the_text_that_api_gateway_looks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert str(unauthorized()) == "Unauthorized"
    monkeypatch.setenv("AWS_CHALICE_CLI_MODE", "true")
    assert isinstance(unauthorized(), NotAuthorizedError)


@pytest.mark.parametrize(
    "group", ["群" * 85, "a" * 127, "a", '"', "\\", "\u0001", "é\n"], ids=ascii
)
def test_the_principal_of_any_accepted_token_fits_into_an_authorizers_result(group: str) -> None:
    """API Gateway answers 500 for a larger result."""
    arn = "arn:aws:execute-api:ap-southeast-2:123456789012:abcdef1234/production/$connect"
    verifier = TokenVerifier(Settings(jwt_secret=SECRET))
    accepted = 0
    for count in range(1, 3000):
        claims = {**CLAIMS, "sub": "s" * 128, "groups": [group] * count}
        token = by_hand({"alg": "HS256"}, json.dumps(claims, ensure_ascii=False).encode())
        try:
            result = allow(arn, verifier.verify(token))
        except Unauthorized:
            break
        accepted = len(json.dumps(result, ensure_ascii=False).encode())
        assert accepted < aws_limits.AUTHORIZER_RESULT_BYTES
    assert accepted > aws_limits.AUTHORIZER_RESULT_BYTES / 2
