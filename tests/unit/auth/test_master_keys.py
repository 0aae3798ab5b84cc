"""The master keys in Secrets Manager, fetched through the SDK."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.session import Session

from chalicelib.auth.cached_fetch import REFRESH_SECONDS, FetchWaits
from chalicelib.auth.master_keys import StoredKeys, master_keys
from chalicelib.errors import KeysUnavailable
from chalicelib.protocol.encryption import Encryption
from chalicelib.runtime.aws import sdk_client
from chalicelib.settings import MasterKey, Settings

OLD = {"kty": "oct", "kid": "old", "k": "b2xk" * 11}
NEW = {"kty": "oct", "kid": "new", "k": "bmV3" * 11}
ABSENT = "arn:aws:secretsmanager:us-east-1:000000000000:secret:absent"


@pytest.fixture
def secrets(aws: None) -> Iterator[Any]:
    client = sdk_client(Session(), "secretsmanager")
    yield client
    client.close()


def key_set(*keys: Any) -> str:
    return json.dumps({"keys": keys})


def stored(secrets: Any, value: str) -> str:
    """Store a secret. Return its ARN."""
    arn: str = secrets.create_secret(Name="herald-keys", SecretString=value)["ARN"]
    return arn


def kids(keys: Any) -> list[str]:
    return [key.kid for key in keys]


def test_keys_are_known_to_exist_without_being_fetched() -> None:
    """Nothing emulates AWS here, so a call would fail."""
    assert Encryption(master_keys(Settings(encryption_keys_arn=ABSENT))).available
    assert not Encryption(master_keys(Settings())).available
    assert Encryption(master_keys(Settings(encryption_keys=(MasterKey("k", b"k" * 32),)))).available


def test_stored_keys_are_fetched_once(secrets: Any) -> None:
    keys = StoredKeys(stored(secrets, key_set(NEW, OLD)))
    assert kids(keys.current()) == ["new", "old"]
    secrets.delete_secret(SecretId="herald-keys", ForceDeleteWithoutRecovery=True)
    assert kids(keys.current()) == ["new", "old"]


def test_a_rotated_secret_is_picked_up_as_the_keys_age(secrets: Any) -> None:
    now = [0.0]
    patient = FetchWaits(with_value=30.0)
    keys = StoredKeys(stored(secrets, key_set(OLD)), lambda: now[0], waits=patient)
    assert kids(keys.current()) == ["old"]
    secrets.put_secret_value(SecretId="herald-keys", SecretString=key_set(NEW, OLD))
    now[0] += REFRESH_SECONDS
    assert kids(keys.current()) == ["old"]
    now[0] += 1
    assert kids(keys.current()) == ["new", "old"]


def test_an_unknown_key_is_looked_for_at_once(secrets: Any) -> None:
    """Another execution environment may have encrypted with a newer key."""
    arn = stored(secrets, key_set(OLD))
    keys, newer = StoredKeys(arn), StoredKeys(arn)
    assert keys.named("old") is not None
    secrets.put_secret_value(SecretId="herald-keys", SecretString=key_set(NEW, OLD))
    sealed = Encryption(newer).seal(b"content")
    assert Encryption(keys).unseal(sealed) == b"content"
    assert keys.named("never") is None


@pytest.mark.parametrize(
    "value", ["not JSON: hush", "{}", '{"keys": []}', key_set({**OLD, "k": "aHVzaA"})]
)
def test_a_secret_that_is_no_key_set_is_unavailable_and_not_quoted(
    secrets: Any, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = StoredKeys(stored(secrets, value))
    logger = logging.getLogger("herald.cached_fetch")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(KeysUnavailable) as unavailable:
            keys.current()
    finally:
        logger.removeHandler(caplog.handler)
    assert "its value isn't a JWK Set" in caplog.text
    assert unavailable.value.retry_after
    for text in (caplog.text, unavailable.value.detail):
        assert "hush" not in text
        assert "aHVzaA" not in text


@pytest.mark.usefixtures("aws")
def test_a_secret_that_cannot_be_read_is_unavailable() -> None:
    keys = StoredKeys(ABSENT)
    with pytest.raises(KeysUnavailable):
        keys.named("old")
