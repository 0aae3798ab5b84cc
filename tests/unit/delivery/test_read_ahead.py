"""Pages that are read in another thread."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from chalicelib.delivery.parcel import Parcel
from chalicelib.delivery.read_ahead import ReadAhead
from chalicelib.errors import Unavailable
from tests.unit.delivery.parcels import parcels

SECONDS = 20.0
PAGES = [parcels("http://127.0.0.1/prod", [name]) for name in ("a", "b")]


@pytest.fixture
def readers() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def taken(source: ReadAhead) -> Sequence[Parcel] | None:
    """Wait until the next page is read, and take it."""
    source._next.exception(SECONDS)
    return source.take()


def ignore() -> None:
    """Stands in for the loop that would be woken."""


def test_pages_come_in_order_and_end(readers: Executor) -> None:
    source = ReadAhead(PAGES, readers, ignore)
    assert [taken(source) for _ in range(3)] == [*PAGES, None]
    assert (source.ended, source.error) == (True, None)


def test_take_returns_none_until_a_page_has_been_read(readers: Executor) -> None:
    go_on, read = threading.Event(), threading.Event()

    def pages() -> Iterator[list[Parcel]]:
        assert go_on.wait(SECONDS)
        yield PAGES[0]

    source = ReadAhead(pages(), readers, read.set)
    assert source.take() is None
    assert not source.ended
    go_on.set()
    assert read.wait(SECONDS)
    assert source.take() == PAGES[0]


@pytest.mark.parametrize("error", [Unavailable("storage failed"), KeyError("a bug")])
def test_an_error_ends_the_pages_and_is_kept(readers: Executor, error: Exception) -> None:
    def pages() -> Iterator[list[Parcel]]:
        yield PAGES[0]
        raise error

    source = ReadAhead(pages(), readers, ignore)
    assert taken(source) == PAGES[0]
    assert taken(source) is None
    assert (source.ended, source.error) == (True, error)


def test_pages_that_are_given_up_end_with_an_error(readers: Executor) -> None:
    source = ReadAhead(PAGES, readers, ignore)
    source.give_up()
    assert taken(source) is None
    assert source.ended
    assert isinstance(source.error, Unavailable)
