"""Herald on AWS: its credentials, its ids, and what `import app` loads."""

import datetime
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.session import Session as SdkSession

from chalicelib.auth.access import AccessRules
from chalicelib.auth.principal import Principal
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.errors import Unavailable
from chalicelib.protocol.ulid import ALPHABET, Stamp
from chalicelib.runtime.aws import Credentials, credentials
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import Settings
from chalicelib.wiring import Herald
from gateway.configuration import PROJECT
from tests.support.tables import NOW


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


def test_ids_do_not_reveal_what_others_sent_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They ascend within a request, and are random between requests."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    settings = Settings(jwt_secret="s" * 32)
    wired = Herald.on_aws(
        settings,
        verify=TokenVerifier(settings).verify,
        rules=AccessRules(settings),
        metrics=Metrics("test"),
    )
    message = {"to": {"all": True}, "data": 1}
    parsers = [
        wired.parser(Principal("a", 1, tenant=name), Stamp.fresh(NOW))
        for name in ("north", "south", "north")
    ]
    requests = [parser.batch({"messages": [message, message]}) for parser in parsers]
    numbers = [[number_of(accepted.id) for accepted in messages] for messages in requests]
    assert all(second == first + 1 for first, second in numbers)
    firsts = sorted(first for first, _ in numbers)
    assert all(later - earlier > 2**40 for earlier, later in pairwise(firsts))


def number_of(ulid: str) -> int:
    number = 0
    for character in ulid:
        number = number * 32 + ALPHABET.index(character)
    return number
