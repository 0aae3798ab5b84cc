"""The HS256 secret in Secrets Manager, fetched through the SDK.

A secret in the settings is in `test_verifier.py`, published keys are in `test_jwks.py`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.session import Session

from chalicelib.auth.cached_fetch import FetchWaits
from chalicelib.auth.jwks import StoredSecret
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.errors import Unauthorized, Unavailable
from chalicelib.runtime.aws import sdk_client
from chalicelib.settings import LOCAL_SECRET, Settings
from tests.support import slow_server
from tests.support.clients import SECRET, token
from tests.support.jwts import CLAIMS, by_hand
from tests.support.key_server import ALGORITHMS, KeyPair, serialized

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


def test_a_rotated_secret_is_fetched_as_soon_as_a_token_needs_it(secrets: Any) -> None:
    arn = stored(secrets, SecretString=SECRET)
    verifier = TokenVerifier(Settings(jwt_secret_arn=arn))
    verifier.verify(token())
    secrets.put_secret_value(SecretId=arn, SecretString=ROTATED)
    assert verifier.verify(token("alice", key=ROTATED)).user_id == "alice"
    with pytest.raises(Unauthorized):
        verifier.verify(token())


def test_the_cached_secret_serves_while_it_cannot_be_fetched(secrets: Any) -> None:
    arn = stored(secrets, SecretString=SECRET)
    verifier = TokenVerifier(Settings(jwt_secret_arn=arn))
    verifier.verify(token())
    secrets.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    verifier.verify(token())
    with pytest.raises(Unauthorized):
        verifier.verify(token(key=ROTATED))


@pytest.mark.parametrize("secret", ["too-short", None], ids=["too short", "missing"])
def test_verification_is_unavailable_without_a_usable_secret(
    secrets: Any, secret: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:nowhere-AbCdEf"
    if secret is not None:
        arn = stored(secrets, SecretString=secret)
    with caplog.at_level("ERROR", "herald"), pytest.raises(Unavailable):
        TokenVerifier(Settings(jwt_secret_arn=arn)).verify(token())
    reason = "it has 9 bytes" if secret else "ResourceNotFoundException"
    assert reason in caplog.text


@pytest.mark.parametrize("behaviour", [slow_server.silence, slow_server.body_byte_by_byte])
def test_a_slow_secrets_manager_is_waited_for_as_long_as_allowed(
    behaviour: slow_server.Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's time-outs are for one packet, and the answer never ends."""
    source = StoredSecret("herald-jwt", waits=FetchWaits(without_value=0.3))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with slow_server.slow_server(behaviour) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        with pytest.raises(Unavailable):
            TokenVerifier(Settings(), [source]).verify(token())


def test_the_secret_is_fetched_from_its_own_region(secrets: Any) -> None:
    elsewhere = sdk_client(Session(), "secretsmanager", "eu-central-1")
    arn = elsewhere.create_secret(Name="herald-jwt", SecretString=SECRET)["ARN"]
    elsewhere.close()
    assert ":eu-central-1:" in arn
    TokenVerifier(Settings(jwt_secret_arn=arn)).verify(token())


@pytest.mark.parametrize(
    "secret",
    list(serialized(KeyPair.new(algorithm, algorithm) for algorithm in ALGORITHMS)),
    ids=range(12),
)
def test_a_public_key_in_secrets_manager_verifies_nothing(secrets: Any, secret: bytes) -> None:
    verifier = TokenVerifier(Settings(jwt_secret_arn=stored(secrets, SecretBinary=secret)))
    with pytest.raises(Unavailable):
        verifier.verify(by_hand({"alg": "HS256"}, CLAIMS, secret))


def test_a_stored_secret_made_for_local_use_verifies_nothing(
    secrets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    secret = LOCAL_SECRET + SECRET
    verifier = TokenVerifier(Settings(jwt_secret_arn=stored(secrets, SecretString=secret)))
    with pytest.raises(Unavailable):
        verifier.verify(by_hand({"alg": "HS256"}, CLAIMS, secret.encode()))
    assert f"it begins with {LOCAL_SECRET}" in caplog.text
    assert SECRET not in caplog.text
