"""Build DynamoDB's write actions from clauses. No I/O.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Expressions.UpdateExpressions.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Action = dict[str, dict[str, Any]]
"""One entry of a `TransactWriteItems`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """A part of a write: what it changes, and the conditions (`when`) that must hold.

    `names` and `values` define the placeholders that it uses. When clauses are combined, a
    placeholder that several of them define must mean the same in each.
    """

    set: Sequence[str] = ()
    remove: Sequence[str] = ()
    add: Sequence[str] = ()
    delete: Sequence[str] = ()
    when: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def update(table: str, key: Mapping[str, Any], *clauses: Clause) -> Action:
    """Return an `Update` of all clauses. If a condition fails, DynamoDB returns the item."""
    expression = " ".join(
        f"{keyword.upper()} {', '.join(changes)}"
        for keyword in ("set", "remove", "add", "delete")
        if (changes := [change for clause in clauses for change in getattr(clause, keyword)])
    )
    action: dict[str, Any] = {
        "TableName": table,
        "Key": dict(key),
        "UpdateExpression": expression,
        **_condition(*clauses),
    }
    return {"Update": action}


def put(table: str, item: Mapping[str, Any], *clauses: Clause) -> Action:
    """Return a `Put` under the conditions of the clauses."""
    return {"Put": {"TableName": table, "Item": dict(item), **_condition(*clauses)}}


def delete(table: str, key: Mapping[str, Any], *clauses: Clause) -> Action:
    """Return a `Delete` under the conditions of the clauses."""
    return {"Delete": {"TableName": table, "Key": dict(key), **_condition(*clauses)}}


def _condition(*clauses: Clause) -> dict[str, Any]:
    """Return the parameters that all kinds of action share."""
    conditions = [f"({condition})" for clause in clauses for condition in clause.when]
    names = {name: attribute for clause in clauses for name, attribute in clause.names.items()}
    values = {name: value for clause in clauses for name, value in clause.values.items()}
    parameters: dict[str, Any] = {}
    if conditions:
        parameters["ConditionExpression"] = " AND ".join(conditions)
        parameters["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    if names:
        parameters["ExpressionAttributeNames"] = names
    if values:
        parameters["ExpressionAttributeValues"] = values
    return parameters


def number(value: float) -> Any:
    """Return a typed number."""
    return {"N": str(value)}
