"""The cost of a request: copies, units, and what is owed after a charge."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.clock import EpochMs
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.cost import Bill, Debt, sent_copies, units_of, written_copies
from chalicelib.protocol.messages import MAX_NAMES, Message
from chalicelib.protocol.strict_json import encode

KB = 1024
KINDS = st.sampled_from([kind for kind in AudienceKind if kind is not AudienceKind.CONNECTIONS])
NAMES = st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=9, unique=True)


def message(audience: Audience, data: Any = 1) -> Message:
    return Message(
        id="0" * 26, sender="alice", timestamp=EpochMs(1), audience=audience, type="t", data=data
    )


def users(*names: str, **more: Any) -> Audience:
    return Audience(AudienceKind.USERS, names, **more)


@pytest.mark.parametrize(
    ("copies", "units"), [(0, 1), (1, 1), (100, 1), (101, 2), (200, 2), (10_000, 100)]
)
def test_a_request_costs_a_unit_for_each_hundred_copies_begun(copies: int, units: int) -> None:
    assert units_of(copies) == units


@pytest.mark.parametrize(
    ("size", "copies"), [(1, 1), (32 * KB, 1), (32 * KB + 1, 2), (128 * KB, 4)]
)
def test_a_frame_counts_once_for_each_32_kb_begun(size: int, copies: int) -> None:
    assert sent_copies(size) == copies


def test_a_message_is_written_once_for_each_name_and_each_kilobyte_begun() -> None:
    small = message(users("bob", "carol"))
    assert written_copies([small]) == 2
    rest = KB - len(encode(replace(small, audience=users(), data="").to_dict()))
    assert written_copies([message(users("bob", "carol"), "x" * rest)]) == 2
    assert written_copies([message(users("bob", "carol"), "x" * (rest + 1))]) == 4


def test_names_that_are_excepted_or_shared_by_everyone_are_not_written() -> None:
    assert written_copies([message(users("bob", "carol", except_users=frozenset({"bob"})))]) == 1
    assert written_copies([message(users("bob", except_users=frozenset({"bob"})))]) == 0
    assert written_copies([message(Audience(AudienceKind.ALL))]) == 1
    assert written_copies([message(Audience(AudienceKind.GROUPS, ("red", "blue")))]) == 2


def test_the_names_of_an_audience_do_not_count_as_content_but_its_exceptions_do() -> None:
    names = tuple(f"{number}".zfill(120) for number in range(MAX_NAMES))
    assert written_copies([message(users(*names))]) == MAX_NAMES
    assert written_copies([message(users("bob", except_users=frozenset(names)))]) == 13


@given(kind=KINDS, names=NAMES, size=st.integers(0, 3 * KB), other=st.integers(0, 3 * KB))
def test_a_larger_message_or_audience_never_costs_less(
    kind: AudienceKind, names: list[str], size: int, other: int
) -> None:
    small, large = sorted((size, other))

    def copies(of: list[str], data: int) -> int:
        return written_copies([message(Audience(kind, tuple(of)), "x" * data)])

    assert 0 < copies(names, small) <= copies(names, large)
    assert copies(names[:1], small) <= copies(names, small)
    every = [message(Audience(kind, tuple(names)), "x" * size) for size in (small, large)]
    assert written_copies(every) == sum(written_copies([one]) for one in every)


@given(
    written=st.integers(0, 30_000),
    pages=st.lists(st.integers(0, 3000), max_size=20),
    messages=st.integers(1, 100),
)
def test_what_is_owed_adds_up_to_what_the_request_costs(
    written: int, pages: list[int], messages: int
) -> None:
    paid = units_of(written)
    bill = Bill(messages=messages, paid=paid)
    units, quota = paid, max(messages, paid)
    for copies in pages:
        debt = bill.add(copies)
        if debt is not None:
            assert debt.units > 0
            units, quota = units + debt.units, quota + debt.quota
    cost = units_of(max(written, sum(pages)))
    assert units == cost
    assert quota == max(messages, cost)


def test_nothing_is_owed_until_more_is_sent_than_was_paid() -> None:
    bill = Bill(messages=1, paid=2)
    assert [bill.add(copies) for copies in (100, 100, 1, 99, 1)] == [
        None,
        None,
        Debt(1, 1),
        None,
        Debt(1, 1),
    ]
