"""Tokens for a deployed stage."""

import boto3
import jwt
import pytest

from infra.cloudformation import DeploymentError
from infra.stage import Stage
from infra.tokens import stage_token

DEV = Stage("dev")
SECRET = "a secret of at least thirty-two bytes"


@pytest.mark.usefixtures("aws")
def test_a_token_is_signed_with_the_configured_secret() -> None:
    assert subject({"HERALD_JWT_SECRET": SECRET}) == "alice"


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("herald-dev-own", {"HERALD_JWT_SECRET_ARN": "herald-dev-own"}),
        (DEV.signing_key, {}),
    ],
)
@pytest.mark.usefixtures("aws")
def test_a_token_is_signed_with_the_stored_secret(name: str, environment: dict[str, str]) -> None:
    boto3.client("secretsmanager").create_secret(Name=name, SecretString=SECRET)
    assert subject(environment) == "alice"


@pytest.mark.usefixtures("aws")
def test_no_token_is_made_for_a_stage_that_trusts_an_identity_provider() -> None:
    with pytest.raises(DeploymentError, match="come from your identity provider"):
        subject({"HERALD_JWKS_URL": "https://id.example.com/keys"})


def subject(environment: dict[str, str]) -> str:
    token = stage_token(DEV, environment, boto3.Session(), "alice", "messages:send")
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert claims["scope"] == "messages:send"
    return str(claims["sub"])
