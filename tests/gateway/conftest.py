"""Gateways of the echo app, which runs the code that a test sends to it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from gateway.server import Running
from tests.support.echo import Echo, echoing


@pytest.fixture
def echo_with(tmp_path: Path) -> Iterator[Callable[..., Echo]]:
    """Start a gateway of the echo app with the given configuration."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(echoing(tmp_path / "events", **changes))


@pytest.fixture
def echo(echo_gateway: tuple[Running, Path]) -> Iterator[Echo]:
    """A client of the shared gateway of the echo app."""
    with closing(Echo(*echo_gateway)) as client:
        yield client
