"""Runs tests that are written for Node's own runner."""

import os
import subprocess
from pathlib import Path

from tests.support.clients import SECRET, Client

MOST_SECONDS = 240


def run_tests(file: Path, herald: Client, **environment: str) -> None:
    """Run a file of tests against a gateway; what failed is in the error's text."""
    settings = {
        "HERALD_URL": herald.running.websocket,
        "HERALD_REST": herald.running.http,
        "HERALD_SECRET": SECRET,
        **environment,
    }
    ended = subprocess.run(
        # A test that fails may leave a client open, for which Node would wait for ever.
        ["node", "--test", "--test-reporter=spec", f"--test-timeout={MOST_SECONDS * 1000}", file],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
