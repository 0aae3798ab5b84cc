"""DynamoDB's read and write units, as AWS counts them. No I/O.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

WRITE_BYTES = 1024
READ_BYTES = 4096
TRANSACTION_FACTOR = 2
EVENTUALLY_CONSISTENT = 0.5
COLLECTION_BYTES = 3

Item = Mapping[str, Any]
"""An item or a key: attribute names to typed values."""


class Cost(NamedTuple):
    """Units that a table, or an index (`table.index`), and one of its partitions are asked for.

    `partition` is None for a scan, which goes from partition to partition.
    """

    table: str
    partition: str | None
    kind: str
    """`reads` or `writes`."""
    units: float


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
            return len(content) * 3 // 4  # base64
        case "SS" | "NS" | "BS":
            return sum(_size_of_value({kind[0]: one}) for one in content)
        case "M":
            return COLLECTION_BYTES + len(content) + size_of(content)
        case "L":
            return COLLECTION_BYTES + sum(1 + _size_of_value(one) for one in content)
        case _:
            return 1


def write_units(size: int) -> float:
    """Return what a write of an item of this size costs; a failed condition costs as much."""
    return max(1, math.ceil(size / WRITE_BYTES))


def read_units(sizes: Iterable[int], *, consistent: bool) -> float:
    """Return what a read costs. A query or a scan rounds the sum of its items' sizes up once."""
    units = max(1, math.ceil(sum(sizes) / READ_BYTES))
    return units if consistent else units * EVENTUALLY_CONSISTENT
