"""Merge streams of recipients that are sorted by connection id, such as the members of groups.

A stream is read a page at a time. The pages of a large one grow, and several are read side by side.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import reduce
from itertools import chain, groupby
from operator import or_

from chalicelib.store.items import Recipient

Found = tuple[Recipient, int]
"""A recipient and the selection for its groups."""

FoundPage = tuple[list[Found], str | None]
"""What a read found, and the position where it ends; None at the end of the stream."""

Read = Callable[[str, int], FoundPage]
"""Reads what comes after a position, up to so many recipients."""


class SortedStream:
    """A stream, and what has been read of it but not been taken."""

    def __init__(self, read: Read, *, after: str, first: int, most: int) -> None:
        """Take what reads it; read nothing yet.

        Args:
            after: The position after which to begin.
            first: How many recipients to read at first; then twice as many each time.
            most: The most to read at a time.
        """
        self.position: str | None = after
        """All up to here has been read; None at the end."""
        self._read = read
        self._items = first
        self._most = most
        self._found: list[Found] = []

    def is_short(self) -> bool:
        """Return whether it is time to read the next page."""
        return self.position is not None and 2 * len(self._found) < self._items

    def read(self) -> None:
        """Read the next page."""
        assert self.position is not None  # noqa: S101 - an ended stream is not short
        found, self.position = self._read(self.position, self._items)
        self._found += found
        self._items = min(self._most, 2 * self._items)

    def take(self, end: str | None) -> list[Found]:
        """Return and forget what was read up to `end`; all of it if that is None."""
        count = len(self._found)
        if end is not None:
            count = bisect_right(self._found, end, key=connection_id_of)
        taken, self._found = self._found[:count], self._found[count:]
        return taken


def merged(
    streams: Sequence[SortedStream], side_by_side: Sequence[SortedStream], readers: Executor | None
) -> Iterator[FoundPage]:
    """Yield the recipients of all streams, sorted and each once, and where each page ends.

    Args:
        streams: Streams that are read one after the other.
        side_by_side: Streams that `readers` reads at the same time, if there are several.
        readers: Without them, these are read one after the other, too.
    """
    everything = (*streams, *side_by_side)
    # Several of the first kind may have the same recipient. A shard of a roster has its own.
    unique = len(everything) == 1 or not streams
    while True:
        _read_short(streams, side_by_side, readers)
        positions = [one.position for one in everything if one.position is not None]
        end = min(positions, default=None)
        taken = sorted(chain(*(one.take(end) for one in everything)), key=connection_id_of)
        yield taken if unique else _joined(taken), end
        if end is None:
            return


def _read_short(
    streams: Sequence[SortedStream], side_by_side: Sequence[SortedStream], readers: Executor | None
) -> None:
    short = [one for one in side_by_side if one.is_short()]
    reads = []
    if readers is not None and len(short) > 1:
        reads = [readers.submit(one.read) for one in short]
        short = []
    for one in (*short, *(one for one in streams if one.is_short())):
        one.read()
    for read in reads:
        read.result()


def _joined(found: Sequence[Found]) -> list[Found]:
    """Join the selections of each recipient."""
    return [
        (same[0][0], reduce(or_, (selection for _, selection in same)))
        for same in (list(same) for _, same in groupby(found, key=connection_id_of))
    ]


def connection_id_of(found: Found) -> str:
    """Return the id by which streams are sorted."""
    return found[0].connection_id
