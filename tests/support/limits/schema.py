"""The keys and the indexes of Herald's tables, for which units are counted."""

from typing import Any, NamedTuple

from infra.stage import RESOURCES, TABLES


class Index(NamedTuple):
    """A global secondary index; `everything` says that it projects all attributes."""

    name: str
    partition_key: str
    everything: bool


class Table(NamedTuple):
    partition_key: str
    key: tuple[str, ...]
    indexes: tuple[Index, ...]


def herald_tables() -> dict[str, Table]:
    """Return Herald's tables under their default names."""
    tables = (RESOURCES[logical_id]["Properties"] for logical_id in TABLES.values())
    return {properties["TableName"]: _table(properties) for properties in tables}


def _table(properties: dict[str, Any]) -> Table:
    key = tuple(element["AttributeName"] for element in properties["KeySchema"])
    indexes = tuple(
        Index(
            f"{properties['TableName']}.{index['IndexName']}",
            index["KeySchema"][0]["AttributeName"],
            index["Projection"]["ProjectionType"] == "ALL",
        )
        for index in properties.get("GlobalSecondaryIndexes", ())
    )
    return Table(key[0], key, indexes)
