"""Runs tests that are written for Node's test runner."""

import os
import subprocess
from pathlib import Path

from tests.support.clients import SECRET, Client

MAX_SECONDS = 240


def run_tests(file: Path, herald: Client, **environment: str) -> None:
    """Run a file of tests against a gateway. Raises AssertionError with the output if one fails."""
    settings = {
        "HERALD_URL": herald.running.websocket,
        "HERALD_REST": herald.running.http,
        "HERALD_SECRET": SECRET,
        **environment,
    }
    completed = subprocess.run(
        # A failed test may leave a client open, and Node would wait for that without a time limit.
        ["node", "--test", "--test-reporter=spec", f"--test-timeout={MAX_SECONDS * 1000}", file],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
