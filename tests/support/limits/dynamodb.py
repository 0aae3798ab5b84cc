"""DynamoDB's throttling: decides on each call, and answers as DynamoDB does when it refuses one.

A call is carried out while the table and the partitions that it needs have tokens left. A batch is
carried out as far as they have tokens for it, and the rest is returned as unprocessed.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.support.limits.buckets import Bucket, Limits
from tests.support.limits.costs import (
    TRANSACTION_FACTOR,
    Cost,
    Version,
    read_units,
    size_of,
    version_of,
    write_costs,
)
from tests.support.limits.schema import Item, Table

FIRST_EQUALITY = re.compile(r"= *(:\w+)")  # of a key condition: the partition key's
MESSAGE = (
    "Throughput exceeds the current capacity of your table or index. DynamoDB is automatically"
    " scaling your table or index so please try again shortly. If exceptions persist, check if you"
    " have a hot key."
)
SINGLE_WRITES = ("PutItem", "UpdateItem", "DeleteItem")


class Answer(NamedTuple):
    status: int
    body: bytes


Forward = Callable[[bytes], Awaitable[Answer]]
"""Sends a request's body to the emulator, and returns its answer."""


class Throttled(Exception):
    """A table or a partition has no token left. `cost` is what was asked of it."""

    def __init__(self, cost: Cost, *, partition: bool) -> None:
        super().__init__("throttled")
        self.cost = cost
        limit = "KeyRangeThroughputExceeded" if partition else "MaxOnDemandThroughputExceeded"
        table, _, index = cost.table.partition(".")
        self.reason = f"{'Index' if index else 'Table'}{cost.kind[:-1].title()}{limit}"
        arn = f"arn:aws:dynamodb:us-east-1:000000000000:table/{table}"
        self.resource = f"{arn}/index/{index}" if index else arn


class LimitedDynamoDB:
    """Limits the calls to some tables; all other calls pass."""

    def __init__(self, limits: Limits, tables: Mapping[str, Table], owners: Sequence[str]) -> None:
        """Start with full buckets.

        Args:
            owners: Names, such as tenants'; a call is counted for the first one that it contains.
        """
        self._limits = limits
        self._tables = tables
        self._owners = [(name, name.encode()) for name in owners]
        self._known: dict[tuple[str, ...], Version] = {}
        self.begin()

    def begin(self) -> None:
        """Fill the buckets, and count from zero."""
        self._buckets: dict[tuple[str, str | None, str], Bucket] = {}
        self.units: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """The units that each table, or index, has spent: `reads` and `writes`."""
        self.calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """The calls of each owner, by operation."""
        self.throttled: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """The calls and parts of batches of each owner that were throttled, by table and reason."""

    async def call(self, operation: str, body: bytes, forward: Forward) -> Answer:
        """Carry out a call, as far as the limits allow it."""
        owner = next((name for name, text in self._owners if text in body), "")
        self.calls[owner][operation] += 1
        request = json.loads(body)
        try:
            match operation:
                case "BatchWriteItem":
                    return await self._batch_write(request, owner, forward)
                case "BatchGetItem":
                    return await self._batch_get(request, owner, forward)
                case "TransactWriteItems":
                    return await self._transact(request, body, owner, forward)
                case "GetItem" | "Query" | "Scan":
                    return await self._read(operation, request, body, forward)
                case _ if operation in SINGLE_WRITES:
                    self._spend_or_raise(self._write_costs(operation[:-4], request))
        except Throttled as throttled:
            self._note(owner, throttled)
            return _refusal(throttled)
        return await forward(body)

    # --- Each kind of call

    async def _batch_write(self, request: Any, owner: str, forward: Forward) -> Answer:
        def costs(table: str, entry: Any) -> list[Cost]:
            [(kind, written)] = entry.items()
            action = {"TableName": table, **written}
            return self._write_costs(kind.removesuffix("Request"), action)

        taken, left = self._divide(request["RequestItems"], owner, costs)
        answer = await forward(json.dumps({**request, "RequestItems": taken}).encode())
        return _with(answer, "UnprocessedItems", left)

    async def _batch_get(self, request: Any, owner: str, forward: Forward) -> Answer:
        asked = request["RequestItems"]

        def costs(table: str, key: Item) -> list[Cost]:
            sizes = [self._size(table, key)]
            consistent = asked[table].get("ConsistentRead", False)
            partition = key[self._tables[table].partition_key]["S"]
            return [Cost(table, partition, "reads", read_units(sizes, consistent=consistent))]

        keys = {table: entry["Keys"] for table, entry in asked.items()}
        taken, left = (
            {table: {**asked[table], "Keys": some} for table, some in part.items()}
            for part in self._divide(keys, owner, costs)
        )
        answer = await forward(json.dumps({**request, "RequestItems": taken}).encode())
        return _with(answer, "UnprocessedKeys", left)

    def _divide(
        self, entries: Mapping[str, Any], owner: str, costs: Callable[[str, Any], list[Cost]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Spend what a batch's entries cost, by table. Returns those to carry out, and the rest.

        Raises Throttled if none of them can be carried out.
        """
        taken: defaultdict[str, list[Any]] = defaultdict(list)
        left: defaultdict[str, list[Any]] = defaultdict(list)
        refusals = []
        for table, some in entries.items():
            for entry in some:
                try:
                    self._spend_or_raise(costs(table, entry) if table in self._tables else [])
                except Throttled as throttled:
                    refusals.append(throttled)
                    left[table].append(entry)
                else:
                    taken[table].append(entry)
        if refusals and not taken:
            raise refusals[0]
        for refusal in refusals:
            self._note(owner, refusal)
        return taken, left

    async def _transact(self, request: Any, body: bytes, owner: str, forward: Forward) -> Answer:
        costs = [
            self._write_costs(kind, action, TRANSACTION_FACTOR)
            for entry in request["TransactItems"]
            for kind, action in entry.items()
        ]
        refusals = [self._refusal_of(some) for some in costs]
        if any(refusals):
            for refusal in filter(None, refusals):
                self._note(owner, refusal)
            return _cancellation(refusals)
        self._spend([cost for some in costs for cost in some])
        return await forward(body)

    async def _read(self, operation: str, request: Any, body: bytes, forward: Forward) -> Answer:
        """Begin a read if there is a token left, and spend what it has cost."""
        table = request["TableName"]
        if table not in self._tables:
            return await forward(body)
        asked = Cost(table, self._partition(operation, request), "reads", 0)
        if refusal := self._refusal_of([asked]):
            raise refusal
        answer = await forward(body)
        if answer.status == 200:
            consistent = request.get("ConsistentRead", False)
            sizes = self._sizes_read(table, operation, request, json.loads(answer.body))
            self._spend([asked._replace(units=read_units(sizes, consistent=consistent))])
        return answer

    def _partition(self, operation: str, request: Any) -> str | None:
        """Return the partition that a read is about; None for a scan."""
        if operation == "Scan":
            return None
        if operation == "GetItem":
            value = request["Key"][self._tables[request["TableName"]].partition_key]
        else:
            found = FIRST_EQUALITY.search(request["KeyConditionExpression"])
            assert found is not None
            value = request["ExpressionAttributeValues"][found[1]]
        return str(value["S"])

    # --- Costs

    def _write_costs(self, kind: str, action: Any, factor: int = 1) -> list[Cost]:
        """Return what a Put, an Update, a Delete or a ConditionCheck costs.

        An item counts as large as its largest write so far, since the size of an updated item is
        not known here. Neither is what an update changes: it counts as if it changed no index.
        """
        table = self._tables.get(action["TableName"])
        if table is None:
            return []
        written = action.get("Item") or {
            **action["Key"],
            **action.get("ExpressionAttributeValues", {}),
        }
        name = (table.name, *(written[attribute]["S"] for attribute in table.key))
        before, asked = self._known.get(name), version_of(table, written)
        largest = max(asked.size, before.size if before else 0)
        entries = before.entries if before else {}
        after = Version(largest, asked.entries if kind == "Put" else entries)
        self._known[name] = after if kind != "Delete" else Version(largest, {})
        partition = written[table.partition_key]["S"]
        return write_costs(table, partition, before, None if kind == "Delete" else after, factor)

    def _size(self, table: str, key: Item) -> int:
        """Return the size of an item, as far as it was written through this proxy."""
        values = (key[attribute]["S"] for attribute in self._tables[table].key)
        known = self._known.get((table, *values))
        return 0 if known is None else known.size

    def _sizes_read(self, table: str, operation: str, request: Any, response: Any) -> Iterable[int]:
        """Return the sizes of the items that a call has read, those filtered out included."""
        if operation == "GetItem":
            return [self._size(table, request["Key"])]
        if operation == "Query":
            return [size_of(item) for item in response["Items"]]
        known = [version.size for name, version in self._known.items() if name[0] == table]
        mean = sum(known) // max(1, len(known))
        return [mean] * response["ScannedCount"]

    # --- Buckets

    def _spend_or_raise(self, costs: Sequence[Cost]) -> None:
        if refusal := self._refusal_of(costs):
            raise refusal
        self._spend(costs)

    def _refusal_of(self, costs: Iterable[Cost]) -> Throttled | None:
        for cost in costs:
            if cost.partition is not None and self._bucket(cost, cost.partition).empty:
                return Throttled(cost, partition=True)
            if self._bucket(cost, None).empty:
                return Throttled(cost, partition=False)
        return None

    def _spend(self, costs: Iterable[Cost]) -> None:
        for cost in costs:
            self.units[cost.table][cost.kind] += cost.units  # type: ignore[assignment]
            for partition in {None, cost.partition}:
                self._bucket(cost, partition).spend(cost.units)

    def _bucket(self, cost: Cost, partition: str | None) -> Bucket:
        name = (cost.table, partition, cost.kind)
        if name not in self._buckets:
            limit = f"{'table' if partition is None else 'partition'}_{cost.kind}"
            rate: float = getattr(self._limits, limit)
            self._buckets[name] = Bucket(rate, rate * self._limits.burst_seconds)
        return self._buckets[name]

    def _note(self, owner: str, throttled: Throttled) -> None:
        self.throttled[owner][f"{throttled.cost.table} {throttled.reason}"] += 1


# --- DynamoDB's answers
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html


def _refusal(throttled: Throttled) -> Answer:
    """Return the error of a table on demand for a call that is throttled as a whole."""
    reasons = [{"reason": throttled.reason, "resource": throttled.resource}]
    return _error(
        "com.amazon.coral.availability#ThrottlingException",
        {"message": MESSAGE, "throttlingReasons": reasons},
    )


def _cancellation(refusals: Sequence[Throttled | None]) -> Answer:
    """Return the error of a transaction, some of whose actions are throttled."""
    codes = ["None" if refusal is None else "ThrottlingError" for refusal in refusals]
    reasons = [
        {"Code": code} if refusal is None else {"Code": code, "Message": MESSAGE}
        for code, refusal in zip(codes, refusals, strict=True)
    ]
    message = (
        "Transaction cancelled, please refer cancellation reasons for specific reasons"
        f" [{', '.join(codes)}]"
    )
    return _error(
        "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        {"Message": message, "CancellationReasons": reasons},
    )


def _error(kind: str, fields: dict[str, object]) -> Answer:
    return Answer(400, json.dumps({"__type": kind, **fields}).encode())


def _with(answer: Answer, field: str, left: Mapping[str, Any]) -> Answer:
    """Add what was left undone to the answer of a batch."""
    if answer.status != 200 or not left:
        return answer
    body = json.loads(answer.body)
    return answer._replace(
        body=json.dumps({**body, field: {**body.get(field, {}), **left}}).encode()
    )
