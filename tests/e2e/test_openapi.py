"""`docs/openapi.yaml` against the running app, by thousands of requests that nobody thought of."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.configuration import PROJECT
from tests.clients import Client, token

SCHEMATHESIS = PROJECT / ".venv" / "e2e" / "bin" / "schemathesis"
MASTER_KEYS = {"keys": [{"kty": "oct", "kid": "k", "k": "bmV3" * 11}]}
EXAMPLES = 60
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.timeout(300)
def test_what_is_written_is_what_is_answered(herald_with: Callable[..., Client]) -> None:
    herald = herald_with(
        HERALD_ENCRYPTION_KEYS=json.dumps(MASTER_KEYS),
        HERALD_MESSAGE_RATE="100000",
        HERALD_MESSAGE_BURST="100000",
    )
    ended = subprocess.run(
        [
            SCHEMATHESIS, "--config-file", CONFIGURATION, "run", "docs/openapi.yaml",
            "--url", herald.running.http,
            "--header", f"Authorization: Bearer {token()}", "--max-examples", str(EXAMPLES),
            "--no-color", "--generation-database", "none",
        ],
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr
