"""What is loaded when, and how the parts are put together."""

import subprocess
import sys
from itertools import pairwise

import pytest

from chalicelib.auth.access import AccessRules
from chalicelib.auth.principal import Principal
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.protocol.ulid import ALPHABET, Stamp
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import Settings
from chalicelib.wiring import Herald
from gateway.configuration import PROJECT
from tests.support.tables import NOW


def test_the_authorizers_need_no_sdk() -> None:
    """Importing it takes longer than all that an authorizer does."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import app, sys; print(*sys.modules)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "chalicelib.auth.authorizers" in loaded
    # Powertools loads the bare package `botocore`, which is a millisecond, and nothing in it.
    assert [name for name in loaded if name == "boto3" or name.startswith("botocore.")] == []


def test_ids_tell_nobody_that_others_sent_just_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a request they are neighbours, so that they rise; between requests chance decides."""
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
