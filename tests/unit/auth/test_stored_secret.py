"""A secret in Secrets Manager, through the SDK that the authorizer makes for itself."""

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.session import Session

from chalicelib.auth.verifier import TokenVerifier
from chalicelib.errors import Unauthorized, Unavailable
from chalicelib.runtime.aws import sdk_client
from chalicelib.settings import Settings
from tests.support.clients import SECRET, token

ROTATED = "the-secret-after-its-rotation-is-another"


@pytest.fixture
def secrets(aws: None) -> Iterator[Any]:
    client = sdk_client(Session(), "secretsmanager")
    yield client
    client.close()


def stored(secrets: Any, **value: Any) -> str:
    """Store a secret. Return its ARN."""
    arn: str = secrets.create_secret(Name="herald-jwt", **value)["ARN"]
    return arn


@pytest.mark.parametrize("value", [{"SecretString": SECRET}, {"SecretBinary": SECRET.encode()}])
def test_a_stored_secret_verifies_tokens(secrets: Any, value: dict[str, Any]) -> None:
    verifier = TokenVerifier(Settings(jwt_secret_arn=stored(secrets, **value)))
    assert verifier.verify(token("alice")).user_id == "alice"
    with pytest.raises(Unauthorized):
        verifier.verify(token(key="k" * 32))


def test_a_rotated_secret_is_found_as_soon_as_a_token_needs_it(secrets: Any) -> None:
    arn = stored(secrets, SecretString=SECRET)
    verifier = TokenVerifier(Settings(jwt_secret_arn=arn))
    verifier.verify(token())
    secrets.put_secret_value(SecretId=arn, SecretString=ROTATED)
    assert verifier.verify(token("alice", key=ROTATED)).user_id == "alice"
    with pytest.raises(Unauthorized):
        verifier.verify(token())


def test_the_last_known_secret_serves_while_it_cannot_be_fetched(secrets: Any) -> None:
    arn = stored(secrets, SecretString=SECRET)
    verifier = TokenVerifier(Settings(jwt_secret_arn=arn))
    verifier.verify(token())
    secrets.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    verifier.verify(token())
    with pytest.raises(Unauthorized):
        verifier.verify(token(key=ROTATED))


@pytest.mark.parametrize("secret", ["too-short", None], ids=["too short", "missing"])
def test_without_a_usable_secret_verification_is_unavailable(
    secrets: Any, secret: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:nowhere-AbCdEf"
    if secret is not None:
        arn = stored(secrets, SecretString=secret)
    with caplog.at_level("ERROR", "herald"), pytest.raises(Unavailable):
        TokenVerifier(Settings(jwt_secret_arn=arn)).verify(token())
    reason = "it has 9 bytes" if secret else "ResourceNotFoundException"
    assert reason in caplog.text


def test_the_secrets_own_region_is_asked(secrets: Any) -> None:
    elsewhere = sdk_client(Session(), "secretsmanager", "eu-central-1")
    arn = elsewhere.create_secret(Name="herald-jwt", SecretString=SECRET)["ARN"]
    elsewhere.close()
    assert ":eu-central-1:" in arn
    TokenVerifier(Settings(jwt_secret_arn=arn)).verify(token())
