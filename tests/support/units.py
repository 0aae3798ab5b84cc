"""What AWS would bill for the calls that some code makes to DynamoDB.

    meter = Meter(client)           # of moto or MiniStack, whatever its tables are called
    herald = Herald(meter, world)   # the code makes its calls through it
    meter.begin()
    ...
    assert meter.calls == ["update_item"]
    assert meter.writes == {LIFE.users: 1}
    assert meter.reads == {}

Units are counted by table and by index (`table.index`). `tests.support.limits.costs` says what each
call costs; the meter looks up the items that a call reads or writes, as they are before and after.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from botocore.exceptions import ClientError

from tests.support.limits.costs import (
    TRANSACTION_FACTOR,
    Cost,
    read_units,
    size_of,
    version_of,
    write_costs,
)
from tests.support.limits.schema import Item, Table, table_of
from tests.support.tables import Counted

Entry = tuple[str, Any]
"""A Put, an Update, a Delete or a ConditionCheck, and its parameters."""

SINGLE_WRITES = {"put_item": "Put", "update_item": "Update", "delete_item": "Delete"}
REFUSALS = ("ConditionalCheckFailedException", "TransactionCanceledException")
"""The errors of calls that are billed: DynamoDB has looked at the items."""

READS_WHAT = (
    "ConsistentRead",
    "ExclusiveStartKey",
    "IndexName",
    "KeyConditionExpression",
    "ScanIndexForward",
    "Segment",
    "TableName",
    "TotalSegments",
)
"""The parameters that decide which items a query or a scan reads. Others decide what it returns."""


class Meter(Counted):
    """A DynamoDB client that counts calls and units.

    It lets one call through at a time, so that what it looks up belongs to that call.
    """

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.writes: Counter[str] = Counter()
        """Write units, by table or index."""
        self._half_reads: Counter[str] = Counter()
        self._tables: dict[str, Table] = {}
        self._lock = threading.RLock()

    @property
    def reads(self) -> dict[str, float]:
        """Read units, by table or index. An eventually consistent read may take half a unit."""
        return {name: halves / 2 for name, halves in self._half_reads.items()}

    def begin(self) -> None:
        """Count from zero."""
        self.calls.clear()
        self.writes.clear()
        self._half_reads.clear()

    def __getattr__(self, operation: str) -> Any:
        call = super().__getattr__(operation)

        def metered(*arguments: Any, **parameters: Any) -> Any:
            with self._lock:
                return self._metered(operation, lambda: call(*arguments, **parameters), parameters)

        return metered

    def _metered(self, operation: str, call: Callable[[], Any], parameters: Any) -> Any:
        match operation:
            case "transact_write_items":
                return self._write(call, list(_of_transaction(parameters)), TRANSACTION_FACTOR)
            case "batch_write_item":
                return self._write(call, list(_of_batch(parameters["RequestItems"])))
            case _ if operation in SINGLE_WRITES:
                return self._write(call, [(SINGLE_WRITES[operation], parameters)])
        response = call()
        match operation:
            case "get_item":
                self._count_get(parameters, parameters["Key"])
            case "batch_get_item":
                self._count_batch(parameters["RequestItems"], response["UnprocessedKeys"])
            case "query" | "scan":
                self._count_page(operation, parameters, response)
        return response

    # --- Writes

    def _write(self, call: Callable[[], Any], entries: list[Entry], factor: int = 1) -> Any:
        """Make a call that writes, and count what it costs, also if a condition fails."""
        before = [self._stored(entry) for entry in entries]
        try:
            response = call()
        except ClientError as error:
            if error.response["Error"]["Code"] in REFUSALS:
                for entry, item in zip(entries, before, strict=True):
                    self._count_refused(entry, item, factor)
            raise
        left = list(_of_batch(response.get("UnprocessedItems", {})))
        for entry, item in zip(entries, before, strict=True):
            if entry not in left:
                self._count_write(entry, item, self._stored(entry), factor)
        return response

    def _count_write(
        self, entry: Entry, before: Item | None, after: Item | None, factor: int
    ) -> None:
        table = self._table(entry[1]["TableName"])
        partition = self._key(entry)[table.partition_key]["S"]
        old, new = (None if item is None else version_of(table, item) for item in (before, after))
        self._add(write_costs(table, partition, old, new, factor))

    def _count_refused(self, entry: Entry, item: Item | None, factor: int) -> None:
        """Count a write that isn't carried out: it costs what it would, but for the indexes.

        What an update would have made of the item is not known; it counts as large as it is.
        """
        largest = max(item or {}, entry[1].get("Item", {}), key=size_of)
        self._count_write(entry, largest, largest, factor)

    def _stored(self, entry: Entry) -> Item | None:
        found = self._client.get_item(
            TableName=entry[1]["TableName"], Key=self._key(entry), ConsistentRead=True
        )
        item: Item | None = found.get("Item")
        return item

    def _key(self, entry: Entry) -> Item:
        """Return the key of the item that an entry writes."""
        written = entry[1].get("Key") or entry[1]["Item"]
        return {name: written[name] for name in self._table(entry[1]["TableName"]).key}

    # --- Reads

    def _count_get(self, parameters: Any, key: Item) -> None:
        """Count the read of one item by its key. One that doesn't exist costs as a small one."""
        item = self._stored(("", {"TableName": parameters["TableName"], "Key": key}))
        self._count_read(parameters, [] if item is None else [item])

    def _count_batch(self, requests: Any, unprocessed: Any) -> None:
        for table, asked in requests.items():
            left = unprocessed.get(table, {}).get("Keys", [])
            for key in asked["Keys"]:
                if key not in left:
                    self._count_get({**asked, "TableName": table}, key)

    def _count_page(self, operation: str, parameters: Any, response: Any) -> None:
        """Count a page of a query or a scan: all that is read, whatever is returned of it."""
        items = response.get("Items", [])
        if parameters.keys() & {"FilterExpression", "ProjectionExpression", "Select"}:
            items = self._whole_page(operation, parameters, response["ScannedCount"])
        self._count_read(parameters, items)

    def _whole_page(self, operation: str, parameters: Any, count: int) -> list[Item]:
        """Return the items of a page as they are stored."""
        if not count:
            return []
        same = {name: parameters[name] for name in READS_WHAT if name in parameters}
        used = set(re.findall(r"[#:]\w+", same.get("KeyConditionExpression", "")))
        for kind in ("ExpressionAttributeNames", "ExpressionAttributeValues"):
            given = parameters.get(kind, {})
            if some := {name: given[name] for name in given.keys() & used}:
                same[kind] = some
        items: list[Item] = getattr(self._client, operation)(**same, Limit=count)["Items"]
        return items

    def _count_read(self, parameters: Any, items: Iterable[Item]) -> None:
        name = ".".join(
            parameters[field] for field in ("TableName", "IndexName") if field in parameters
        )
        consistent = parameters.get("ConsistentRead", False)
        units = read_units(map(size_of, items), consistent=consistent)
        self._add([Cost(name, None, "reads", units)])

    # --- Counts

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            self._tables[name] = table_of(self._client.describe_table(TableName=name)["Table"])
        return self._tables[name]

    def _add(self, costs: Iterable[Cost]) -> None:
        for cost in costs:
            if cost.kind == "writes":
                self.writes[cost.table] += int(cost.units)
            else:
                self._half_reads[cost.table] += int(cost.units * 2)


def _of_transaction(parameters: Any) -> Iterator[Entry]:
    for action in parameters["TransactItems"]:
        yield from action.items()


def _of_batch(requests: Any) -> Iterator[Entry]:
    for table, some in requests.items():
        for request in some:
            for kind, written in request.items():
                yield kind.removesuffix("Request"), {**written, "TableName": table}
