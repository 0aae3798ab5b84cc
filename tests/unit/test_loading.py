"""How what stays is loaded."""

import gc

import pytest

from chalicelib.loading import to_stay


def test_what_is_loaded_is_no_more_searched_for_garbage() -> None:
    before = gc.get_freeze_count()
    with to_stay():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_what_a_failure_leaves_is_garbage_as_ever() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(LookupError), to_stay():
        raise LookupError
    assert gc.isenabled()
    assert gc.get_freeze_count() == before
