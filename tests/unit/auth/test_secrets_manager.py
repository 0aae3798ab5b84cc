"""Reading secrets. How long that may take is in `test_jwks_secrets.py`."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from botocore.session import Session

from chalicelib.auth.cached_fetch import FetchError
from chalicelib.auth.secrets_manager import read_secret
from chalicelib.runtime.aws import sdk_client


@pytest.fixture
def secrets(aws: None) -> Iterator[Any]:
    with closing(sdk_client(Session(), "secretsmanager")) as client:
        yield client


@pytest.mark.parametrize("value", [{"SecretString": "secret"}, {"SecretBinary": b"secret"}])
def test_a_secret_is_read_by_its_arn_and_by_its_name(secrets: Any, value: dict[str, Any]) -> None:
    arn = secrets.create_secret(Name="herald/one", **value)["ARN"]
    assert read_secret(arn) == read_secret("herald/one") == b"secret"


def test_a_secret_that_cannot_be_read_is_reported(secrets: Any) -> None:
    with pytest.raises(FetchError, match="ResourceNotFound"):
        read_secret("missing")
