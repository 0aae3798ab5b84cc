"""The construction of Herald's parts, and the modules that `import app` loads."""

import subprocess
import sys
import threading
from functools import cached_property
from typing import Any

import pytest
from botocore.client import BaseClient

from chalicelib.auth.access import AccessRules
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import Settings
from chalicelib.wiring import Herald
from gateway.configuration import PROJECT


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


def test_every_part_can_be_built_without_a_call_to_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    this_thread = threading.get_ident()
    call = BaseClient._make_api_call  # type: ignore[attr-defined]  # The stubs leave it out.

    def refuse(client: BaseClient, *arguments: Any) -> Any:
        # Other threads of this process serve the local gateway, which polls its queues.
        assert threading.get_ident() != this_thread, "a call to AWS"
        return call(client, *arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    settings = Settings(jwt_secret="s" * 32)
    herald = Herald.on_aws(
        settings,
        verify=TokenVerifier(settings).verify,
        rules=AccessRules(settings),
        metrics=Metrics("test"),
    )
    parts = [name for name, part in vars(Herald).items() if isinstance(part, cached_property)]
    assert len(parts) > 20
    assert None not in [getattr(herald, name) for name in parts]
