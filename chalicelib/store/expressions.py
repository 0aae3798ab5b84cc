"""DynamoDB update expressions, put together from parts. No I/O here.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Expressions.UpdateExpressions.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Action = dict[str, dict[str, Any]]
"""One entry of a `TransactWriteItems`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """Clauses of an update, the conditions that must hold for it (`when`), and the names and
    typed values that they use. Parts of one update use different ones, or mean the same."""

    set: Sequence[str] = ()
    remove: Sequence[str] = ()
    add: Sequence[str] = ()
    delete: Sequence[str] = ()
    when: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def update(table: str, key: Mapping[str, Any], *parts: Clause) -> Action:
    """An `Update` of all `parts`, whose failed condition returns the item."""
    expression = " ".join(
        f"{clause.upper()} {', '.join(entries)}"
        for clause in ("set", "remove", "add", "delete")
        if (entries := [entry for part in parts for entry in getattr(part, clause)])
    )
    action: dict[str, Any] = {
        "TableName": table,
        "Key": dict(key),
        "UpdateExpression": expression,
        **_conditions(*parts),
    }
    return {"Update": action}


def put(table: str, item: Mapping[str, Any], *parts: Clause) -> Action:
    """A `Put` under the conditions of `parts`."""
    return {"Put": {"TableName": table, "Item": dict(item), **_conditions(*parts)}}


def delete(table: str, key: Mapping[str, Any], *parts: Clause) -> Action:
    """A `Delete` under the conditions of `parts`."""
    return {"Delete": {"TableName": table, "Key": dict(key), **_conditions(*parts)}}


def _conditions(*parts: Clause) -> dict[str, Any]:
    """What the kinds of action have in common."""
    conditions = [f"({condition})" for part in parts for condition in part.when]
    names = {name: attribute for part in parts for name, attribute in part.names.items()}
    values = {name: value for part in parts for name, value in part.values.items()}
    common: dict[str, Any] = {}
    if conditions:
        common["ConditionExpression"] = " AND ".join(conditions)
        common["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    if names:
        common["ExpressionAttributeNames"] = names
    if values:
        common["ExpressionAttributeValues"] = values
    return common


def number(value: float) -> Any:
    """A typed number."""
    return {"N": str(value)}
