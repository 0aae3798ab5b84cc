"""A stub of `@connections`."""

from collections.abc import Iterator

import pytest

from tests.support.stub import Stub, stub


@pytest.fixture
def stubbed() -> Iterator[Stub]:
    with stub() as endpoint:
        yield endpoint
