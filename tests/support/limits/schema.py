"""The keys and the indexes of tables, on which the price of a write depends."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from infra.stage import RESOURCES, TABLES

Item = Mapping[str, Any]
"""An item or a key: attribute names to typed values."""


class Index(NamedTuple):
    """A global secondary index."""

    name: str
    """`table.index`"""
    key: tuple[str, ...]
    projected: frozenset[str] | None
    """The attributes of an entry; None means all that an item has."""

    def entry(self, item: Item) -> Item | None:
        """Return an item's entry, or None if it lacks an attribute of the index's key."""
        if not item.keys() >= set(self.key):
            return None
        if self.projected is None:
            return item
        return {name: item[name] for name in self.projected & item.keys()}


class Table(NamedTuple):
    name: str
    key: tuple[str, ...]
    indexes: tuple[Index, ...]

    @property
    def partition_key(self) -> str:
        """The attribute that decides on an item's partition."""
        return self.key[0]


def herald_tables() -> dict[str, Table]:
    """Return Herald's tables under their default names."""
    tables = (table_of(RESOURCES[logical_id]["Properties"]) for logical_id in TABLES.values())
    return {table.name: table for table in tables}


def table_of(description: Mapping[str, Any]) -> Table:
    """Return a table, from its properties in a template or from what DescribeTable says of it."""
    name, key = description["TableName"], _key(description)
    indexes = (_index(name, key, index) for index in description.get("GlobalSecondaryIndexes", ()))
    return Table(name, key, tuple(indexes))


def _index(table: str, table_key: tuple[str, ...], description: Mapping[str, Any]) -> Index:
    key, projection = _key(description), description["Projection"]
    projected = frozenset((*key, *table_key, *projection.get("NonKeyAttributes", ())))
    everything = projection["ProjectionType"] == "ALL"
    return Index(f"{table}.{description['IndexName']}", key, None if everything else projected)


def _key(description: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(element["AttributeName"] for element in description["KeySchema"])
