"""`clients/js` against the local gateway; the tests themselves are in `herald*.test.mjs`."""

from collections.abc import Callable
from pathlib import Path

from tests.e2e.node import run_tests
from tests.support.clients import Client


def test_the_javascript_client_works_with_the_local_gateway(
    herald_with: Callable[..., Client],
) -> None:
    herald = herald_with(GATEWAY_IDLE_TIMEOUT_SECONDS="1")
    run_tests(Path(__file__).with_name("herald.test.mjs"), herald)


def test_the_javascript_client_pings_and_sends_heartbeats_in_time(herald: Client) -> None:
    run_tests(Path(__file__).with_name("herald-times.test.mjs"), herald)
