"""Clients that notice who answered, and the credentials that sign."""

import datetime
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import PartialCredentialsError
from botocore.session import Session

from chalicelib.errors import Unavailable
from chalicelib.runtime.aws import Credentials, NotFromAws, credentials, sdk_client


class FakeSession:
    """A session whose credential chain found these credentials."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def get_credentials(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def expiring(number: int, minutes: int) -> dict[str, str]:
    expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    return {
        "access_key": f"AK{number}",
        "secret_key": f"secret{number}",
        "token": f"token{number}",
        "expiry_time": expiry.isoformat(),
    }


def test_expiring_credentials_are_refreshed() -> None:
    found = RefreshableCredentials.create_from_metadata(
        expiring(1, minutes=1), refresh_using=lambda: expiring(2, minutes=60), method="test"
    )
    session: Any = FakeSession(found)
    assert credentials(session)() == Credentials("AK2", "secret2", "token2")


def test_credentials_come_from_the_sdks_own_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert credentials(Session())() == Credentials("AK", "secret", "token")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "credentials are missing"),
        (PartialCredentialsError(provider="env", cred_var="secret"), "credentials can't be loaded"),
    ],
)
def test_missing_credentials_raise_unavailable(found: Any, message: str) -> None:
    session: Any = FakeSession(found)
    with pytest.raises(Unavailable, match=message):
        credentials(session)()


class Body:
    """A response's body, as urllib3 streams it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, *_: object, **__: object) -> list[bytes]:
        return [self._content]


def answered(monkeypatch: pytest.MonkeyPatch, status: int, content_type: str, body: bytes) -> Any:
    """Return a DynamoDB client whose requests get this response instead of being sent."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = sdk_client(Session(), "dynamodb", "us-east-1")
    headers: Any = {"content-type": content_type}
    client.meta.events.register(
        "before-send", lambda **_: AWSResponse("http://proxy", status, headers, Body(body))
    )
    return client


def put(client: Any) -> None:
    client.put_item(TableName="users", Item={"user": {"S": "/alice"}})


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=utf-8", b"<html>Log in to the hotel's network</html>"),
        ("text/plain", b"OK"),
        ("application/x-amz-json-1.0", b"<html>"),
    ],
)
def test_a_success_that_did_not_come_from_aws_is_an_error(
    monkeypatch: pytest.MonkeyPatch, content_type: str, body: bytes
) -> None:
    with pytest.raises(NotFromAws, match="PutItem did not come from AWS"):
        put(answered(monkeypatch, 200, content_type, body))


@pytest.mark.parametrize("body", [b"{}", b""])
def test_an_empty_result_of_aws_is_accepted(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    put(answered(monkeypatch, 200, "application/x-amz-json-1.0", body))
