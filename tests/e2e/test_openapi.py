"""`docs/openapi.yaml` against the running app, with thousands of generated requests, and
`docs/asyncapi.yaml` against its schema. Frames are checked wherever a test receives one."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from jsonschema import Draft7Validator

from gateway.configuration import PROJECT
from tests.support.clients import Client, token
from tests.support.schemas import DOCUMENTS

SCHEMATHESIS = PROJECT / ".venv" / "e2e" / "bin" / "schemathesis"
MASTER_KEYS = {"keys": [{"kty": "oct", "kid": "k", "k": "bmV3" * 11}]}
EXAMPLES = 60
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


ASYNCAPI = Path(__file__).parent / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"


def test_the_document_of_the_frames_is_valid_asyncapi() -> None:
    Draft7Validator(json.loads(ASYNCAPI.read_text())).validate(DOCUMENTS["asyncapi.yaml"])


def test_the_app_answers_as_its_openapi_document_says(herald_with: Callable[..., Client]) -> None:
    herald = herald_with(
        HERALD_ENCRYPTION_KEYS=json.dumps(MASTER_KEYS),
        HERALD_MESSAGE_RATE="100000",
        HERALD_MESSAGE_BURST="100000",
    )
    completed = subprocess.run(
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
    assert completed.returncode == 0, completed.stdout[-20_000:] + completed.stderr
