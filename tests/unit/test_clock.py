import time

import pytest

from chalicelib.clock import epoch_ms, now_ms


def test_the_clock_counts_whole_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_999_999)
    assert now_ms() == 1_700_000_000_123


@pytest.mark.parametrize("number", ["1700000000123", 1_700_000_000_123])
def test_a_time_is_read_from_a_number(number: str | int) -> None:
    assert epoch_ms(number) == 1_700_000_000_123
