"""`clients/js` against the local gateway; the tests are in `herald.test.mjs`."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.clients import SECRET, Client

TESTS = Path(__file__).with_name("herald.test.mjs")


def test_the_javascript_client(herald_with: Callable[..., Client]) -> None:
    running = herald_with(GATEWAY_IDLE_TIMEOUT_SECONDS="1").running
    settings = {
        "HERALD_URL": running.websocket,
        "HERALD_REST": running.http,
        "HERALD_SECRET": SECRET,
    }
    ended = subprocess.run(
        ["node", "--test", "--test-reporter=spec", TESTS],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
