"""DynamoDB's read and write units, as AWS counts them. No I/O.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/GSI.html
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.support.limits.schema import Index, Item, Table

WRITE_BYTES = 1024
READ_BYTES = 4096
TRANSACTION_FACTOR = 2
EVENTUALLY_CONSISTENT = 0.5
COLLECTION_BYTES = 3


class Cost(NamedTuple):
    """Units that a table, or an index (`table.index`), and one of its partitions are asked for.

    `partition` is None for a scan, which goes from partition to partition.
    """

    table: str
    partition: str | None
    kind: str
    """`reads` or `writes`."""
    units: float


class Version(NamedTuple):
    """An item before or after a write, as far as the write's price depends on it."""

    size: int
    entries: Mapping[str, Item]
    """Its entries in indexes, by the index's name."""


def version_of(table: Table, item: Item) -> Version:
    """Return what the price of a write needs to know of an item."""
    found = {index.name: index.entry(item) for index in table.indexes}
    return Version(size_of(item), {name: entry for name, entry in found.items() if entry})


# --- Sizes


def size_of(item: Item) -> int:
    """Return the size of an item in bytes."""
    return sum(len(name.encode()) + _size_of_value(value) for name, value in item.items())


def _size_of_value(value: Item) -> int:
    [(kind, content)] = value.items()
    match kind:
        case "S":
            return len(content.encode())
        case "N":
            return 1 + (len(content.lstrip("-")) + 1) // 2
        case "B":
            return len(content) if isinstance(content, bytes) else len(content) * 3 // 4  # base64
        case "SS" | "NS" | "BS":
            return sum(_size_of_value({kind[0]: one}) for one in content)
        case "M":
            return COLLECTION_BYTES + len(content) + size_of(content)
        case "L":
            return COLLECTION_BYTES + sum(1 + _size_of_value(one) for one in content)
        case _:
            return 1


# --- Units


def write_units(size: int) -> int:
    """Return what a write of an item of this size costs; a failed condition costs as much."""
    return max(1, math.ceil(size / WRITE_BYTES))


def read_units(sizes: Iterable[int], *, consistent: bool) -> float:
    """Return what a read costs. A query or a scan rounds the sum of its items' sizes up once."""
    units = max(1, math.ceil(sum(sizes) / READ_BYTES))
    return units if consistent else units * EVENTUALLY_CONSISTENT


def write_costs(
    table: Table,
    partition: str,
    before: Version | None,
    after: Version | None,
    factor: int = 1,
) -> list[Cost]:
    """Return what a write costs the table and its indexes.

    Args:
        partition: The value of the partition key.
        before, after: The item before and after the write; None if it did or does not exist. The
            larger one counts. A write that is refused leaves the item as it was.
        factor: TRANSACTION_FACTOR in a transaction. Indexes are written after it, at the price of
            other writes.
    """
    size = max((version.size for version in (before, after) if version is not None), default=0)
    costs = [Cost(table.name, partition, "writes", write_units(size) * factor)]
    for index in table.indexes:
        old, new = (
            None if version is None else version.entries.get(index.name)
            for version in (before, after)
        )
        costs += _entry_costs(index, old, new)
    return costs


def _entry_costs(index: Index, old: Item | None, new: Item | None) -> list[Cost]:
    """Return what a change of an index's entry costs. One that stays as it is costs nothing."""
    if old == new:
        return []
    written = [entry for entry in (old, new) if entry is not None]
    if old is not None and new is not None and all(old[name] == new[name] for name in index.key):
        written = [max(old, new, key=size_of)]  # it is replaced in its place
    return [
        Cost(index.name, entry[index.key[0]]["S"], "writes", write_units(size_of(entry)))
        for entry in written
    ]
