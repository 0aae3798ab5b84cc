"""Ids sort by time, rise within a request, and reveal nothing between requests."""

from itertools import islice, pairwise

import pytest

from chalicelib.clock import EpochMs
from chalicelib.protocol.ulid import ALPHABET, RANDOM_BITS, Stamp, earliest, timestamp_of

NOW = EpochMs(1_795_477_071_772)


def number_of(ulid: str) -> int:
    number = 0
    for character in ulid:
        number = number * 32 + ALPHABET.index(character)
    return number


def test_the_ids_of_a_request_rise() -> None:
    ids = list(islice(Stamp.fresh(NOW).ids(), 100))
    assert ids == sorted(set(ids))
    assert all(len(ulid) == 26 and set(ulid) <= set(ALPHABET) for ulid in ids)
    assert list(islice(Stamp(NOW, 2**RANDOM_BITS - 1).ids(), 2))[1].endswith("0" * 16)


def test_a_stamp_always_gives_the_same_ids() -> None:
    stamp = Stamp.fresh(NOW)
    assert list(islice(stamp.ids(), 9)) == list(islice(stamp.ids(), 9))
    assert next(stamp.ids()) != next(Stamp.fresh(NOW).ids())


def test_a_ulid_begins_with_its_time() -> None:
    # The example of the specification.
    assert next(Stamp.fresh(EpochMs(1469918176385)).ids()).startswith("01ARYZ6S41")


def test_ids_do_not_reveal_that_others_sent_at_the_same_moment() -> None:
    """The ids of a request are consecutive, so that they rise; those of two requests are random."""
    requests = [list(islice(Stamp.fresh(NOW).ids(), 2)) for _ in range(3)]
    numbers = [[number_of(ulid) for ulid in ids] for ids in requests]
    assert all(second == first + 1 for first, second in numbers)
    firsts = sorted(first for first, _ in numbers)
    assert all(later - earlier > 2**40 for earlier, later in pairwise(firsts))


def test_the_time_of_an_id_can_be_read() -> None:
    assert timestamp_of(next(Stamp.fresh(NOW).ids())) == NOW


def test_no_id_of_a_time_is_lower_than_its_earliest() -> None:
    assert timestamp_of(earliest(NOW)) == NOW
    assert earliest(NOW) <= next(Stamp(NOW, 0).ids()) < earliest(EpochMs(NOW + 1))
    assert earliest(EpochMs(-1)) == "0" * 26


@pytest.mark.parametrize("text", ["", "0" * 25, "0" * 27, "8" + "0" * 25, "0" * 25 + "U", "é" * 26])
def test_other_text_is_not_a_ulid(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a ULID|not found"):
        timestamp_of(text)
