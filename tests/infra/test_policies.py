"""The IAM policies of the functions."""

import re
from typing import Any

import pytest

from infra.configuration import StageConfiguration
from infra.policies import KEY_OF_TEMPLATE, policy
from infra.stage import FUNCTIONS, Stage

KMS_KEY = "arn:aws:kms:us-east-1:000000000000:key/a"
ENCRYPTING = {"api_handler", "websocket_message", "deliver_queued"}
VERIFYING = {"rest_authorizer", "connect_authorizer", "websocket_connect", "websocket_message"}


def secret(name: str) -> str:
    return f"arn:aws:secretsmanager:us-east-1:000000000000:secret:{name}"


def configured(**variables: str) -> StageConfiguration:
    return StageConfiguration(Stage("dev"), {"environment_variables": variables})


DEV = configured()


def statements(configuration: StageConfiguration, function: str, action: str) -> list[Any]:
    """Return the statements of a function's policy that allow an action."""
    document = policy(configuration, function, kms_key=KMS_KEY)
    return [one for one in document["Statement"] if action in one["Action"]]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_statement_names_its_actions_and_one_resource_of_the_stage(function: str) -> None:
    document = policy(DEV, function)
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in statement["Action"]:
            assert re.fullmatch(r"[a-z-]+:[A-Za-z]+", action)
        [resource] = [statement["Resource"]]
        assert "herald" in resource or "@connections" in resource
        assert "prod" not in resource
    resources = [statement["Resource"] for statement in document["Statement"]]
    assert len(resources) == len(set(resources))


def test_a_policy_allows_tracing_only_if_the_stage_is_traced() -> None:
    traced = StageConfiguration(Stage("dev"), {"stages": {"dev": {"xray": True}}})
    statements = policy(DEV, "sweep")["Statement"]
    [more] = [one for one in policy(traced, "sweep")["Statement"] if one not in statements]
    assert more["Action"] == ["xray:PutTelemetryRecords", "xray:PutTraceSegments"]


def test_authorizers_may_only_log_and_read_secrets() -> None:
    for function in ("rest_authorizer", "connect_authorizer"):
        actions = [one for it in policy(DEV, function)["Statement"] for one in it["Action"]]
        assert {action.partition(":")[0] for action in actions} == {"logs", "secretsmanager"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_may_read_only_the_secrets_that_it_needs(function: str) -> None:
    """An ARN may be complete, or lack the six characters that Secrets Manager adds."""
    signing, encrypting = secret("signing"), secret("other-name")
    configuration = configured(HERALD_JWT_SECRET_ARN=signing, HERALD_ENCRYPTION_KEYS_ARN=encrypting)
    read = statements(configuration, function, "secretsmanager:GetSecretValue")
    needed = [signing] * (function in VERIFYING) + [encrypting] * (function in ENCRYPTING)
    expected = {arn + suffix for arn in needed for suffix in ("", "-??????")}
    assert {one["Resource"] for one in read} == expected


def test_a_stage_without_a_key_source_reads_the_signing_key_of_its_own() -> None:
    own = "arn:*:secretsmanager:*:*:secret:herald-dev-signing-key"
    read = statements(DEV, "rest_authorizer", "secretsmanager:GetSecretValue")
    assert {one["Resource"] for one in read} == {own, f"{own}-??????"}
    provider = configured(HERALD_JWKS_URL="https://id.example.com/keys")
    assert statements(provider, "rest_authorizer", "secretsmanager:GetSecretValue") == []


DECRYPTED = {
    "rest_authorizer": {"secretsmanager"},
    "connect_authorizer": {"secretsmanager"},
    "websocket_connect": {"dynamodb", "secretsmanager", "sns"},
    "websocket_message": {"dynamodb", "secretsmanager", "sns", "sqs"},
    "websocket_disconnect": {"dynamodb"},
    "api_handler": {"dynamodb", "sns", "sqs"},
    "sweep": {"dynamodb", "sns"},
    "deliver_queued": {"dynamodb", "sns", "sqs"},
}
"""The services that decrypt with the customer's key in the name of each function."""


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_customers_key_can_be_used_by_the_services_of_a_function_alone(function: str) -> None:
    """https://docs.aws.amazon.com/kms/latest/developerguide/conditions-kms.html#conditions-kms-via-service"""
    allowed = {
        statement["Action"][0]: statement
        for statement in policy(DEV, function, kms_key=KMS_KEY)["Statement"]
        if statement["Action"][0].startswith("kms:")
    }
    via = {
        action: set(statement["Condition"]["StringLike"]["kms:ViaService"])
        for action, statement in allowed.items()
    }
    assert {statement["Resource"] for statement in allowed.values()} == {KMS_KEY}
    decrypted = DECRYPTED[function]
    assert via.pop("kms:Decrypt") == {f"{one}.*.amazonaws.com" for one in decrypted}
    written = {f"{one}.*.amazonaws.com" for one in decrypted & {"sns", "sqs"}}
    assert via == ({"kms:GenerateDataKey": written} if written else {})


def test_without_a_customers_key_no_policy_names_kms() -> None:
    assert all("kms:" not in str(policy(DEV, function)) for function in FUNCTIONS)


def test_a_packaged_policy_names_the_key_of_the_template_if_it_has_one() -> None:
    plain = policy(DEV, "sweep")["Statement"]
    packaged = policy(DEV, "sweep", kms_key=KEY_OF_TEMPLATE)["Statement"]
    assert packaged[: len(plain)] == plain
    for statement in packaged[len(plain) :]:
        condition, allowed, otherwise = statement["Fn::If"]
        assert condition == "HasKmsKey"
        assert allowed["Resource"] == {"Ref": "KmsKey"}
        assert otherwise == {"Ref": "AWS::NoValue"}
