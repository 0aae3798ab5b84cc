"""Garbage collection during imports, and what a function imports."""

import gc
import subprocess
import sys

import pytest

from chalicelib.runtime.startup import gc_frozen
from gateway.configuration import PROJECT


def test_objects_created_inside_are_exempt_from_garbage_collection() -> None:
    before = gc.get_freeze_count()
    with gc_frozen():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_objects_left_by_an_exception_are_collected_as_usual() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(LookupError), gc_frozen():
        raise LookupError
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_an_execution_environment_does_not_load_asyncio() -> None:
    """It handles one event at a time; without asyncio it starts in half the time."""
    code = "import sys, gateway.functions.runtime; print('asyncio' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "False\n"
