"""Fixtures of the tests of the fan-out."""

from typing import Any

import pytest

from tests.support.fanout import FanoutScene


@pytest.fixture
def scene(life: Any) -> FanoutScene:
    return FanoutScene(life)
