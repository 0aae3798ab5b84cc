"""Herald on AWS: its credentials, its ids, and what `import app` loads."""

import datetime
import subprocess
import sys
from typing import Any

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.session import Session as SdkSession

from chalicelib.errors import Unavailable
from chalicelib.runtime.aws import Credentials, credentials
from gateway.configuration import PROJECT


class Session:
    """A session whose providers found these credentials."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def get_credentials(self) -> Any:
        return self._found


def expiring(number: int, minutes: int) -> dict[str, str]:
    expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    return {
        "access_key": f"AK{number}",
        "secret_key": f"secret{number}",
        "token": f"token{number}",
        "expiry_time": expiry.isoformat(),
    }


def test_credentials_that_expire_are_refreshed() -> None:
    found = RefreshableCredentials.create_from_metadata(
        expiring(1, minutes=1), refresh_using=lambda: expiring(2, minutes=60), method="test"
    )
    session: Any = Session(found)
    assert credentials(session)() == Credentials("AK2", "secret2", "token2")


def test_the_sdks_chain_of_providers_finds_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert credentials(SdkSession())() == Credentials("AK", "secret", "token")


def test_missing_credentials_are_reported_as_such() -> None:
    session: Any = Session(None)
    with pytest.raises(Unavailable, match="credentials are missing"):
        credentials(session)()


def test_the_authorizers_need_no_sdk() -> None:
    """Importing the SDK takes longer than everything else that an authorizer does."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import app, sys; print(*sys.modules)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "chalicelib.auth.authorizers" in loaded
    # Powertools imports the bare package `botocore`, which takes a millisecond, and nothing in it.
    assert [name for name in loaded if name == "boto3" or name.startswith("botocore.")] == []
