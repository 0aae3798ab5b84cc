"""The console in a browser; the tests themselves are in `console.test.mjs`."""

import json
from collections.abc import Callable
from pathlib import Path

from gateway.configuration import PROJECT
from tests.e2e.node import run_tests
from tests.support.clients import Client

SCREENSHOTS = PROJECT / ".herald" / "screenshots"
MASTER_KEYS = {"keys": [{"kty": "oct", "kid": "k", "k": "bmV3" * 11}]}


def test_the_console_works_in_a_browser(herald_with: Callable[..., Client]) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    herald = herald_with(
        HERALD_INLINE_RECIPIENTS="2",
        HERALD_ENCRYPTION_KEYS=json.dumps(MASTER_KEYS),
    )
    run_tests(Path(__file__).with_name("console.test.mjs"), herald, SCREENSHOTS=str(SCREENSHOTS))
