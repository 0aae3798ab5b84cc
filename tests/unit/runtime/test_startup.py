"""How what stays is loaded."""

import gc
import subprocess
import sys

import pytest

from chalicelib.runtime.startup import gc_frozen
from gateway.configuration import PROJECT


def test_what_is_loaded_is_no_more_searched_for_garbage() -> None:
    before = gc.get_freeze_count()
    with gc_frozen():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_what_a_failure_leaves_is_garbage_as_ever() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(LookupError), gc_frozen():
        raise LookupError
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_an_execution_environment_loads_no_event_loop() -> None:
    """It answers one event at a time, and starts without asyncio in half of the time."""
    code = "import sys, gateway.functions.runtime; print('asyncio' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "False\n"
