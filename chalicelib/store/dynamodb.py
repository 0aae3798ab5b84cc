"""Every call that Herald makes to DynamoDB, and the meaning of its errors.

The client's time-outs are short (see `runtime.aws`), so that a caller gets a 503 within seconds
instead of after the SDK's default minute.
"""

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from botocore.session import Session

from chalicelib import aws_limits
from chalicelib.errors import Contended, Unavailable
from chalicelib.runtime.aws import sdk_client
from chalicelib.store.expressions import Action
from chalicelib.store.item_parser import ITEMS_OF, parse_items
from chalicelib.store.schema import KEY_ATTRIBUTES, Item, Tables

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

MAX_BATCH_GET = aws_limits.BATCH_GET_KEYS
MAX_BATCH_WRITE = aws_limits.BATCH_WRITE_ITEMS
RETRY_AFTER_SECONDS = 1.0

BATCH_THROTTLED = "BatchThrottled"
"""The code of a throttled `BatchWriteItem`, in place of AWS's; see `_leave_throttled_batches`."""
THROTTLED_CODES = frozenset(
    {
        BATCH_THROTTLED,
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ThrottlingException",
    }
)
"""https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html"""

logger = logging.getLogger("herald.storage")

_Response = TypeVar("_Response")


class Retries(NamedTuple):
    """The number of tries of calls that the SDK doesn't retry.

    Before the n-th retry it waits up to 2ⁿ times the backoff, counted from 0.
    """

    batch_tries: int = 5
    batch_backoff_seconds: float = 0.05
    conflict_tries: int = 8
    conflict_backoff_seconds: float = 0.02


DEFAULT_RETRIES = Retries()


class ItemPage(NamedTuple):
    """A page of a query or a scan.

    `position` is the key after which the next page starts, or None on the last page.
    """

    items: list[Item]
    position: Item | None


def dynamodb_client(session: Session) -> "DynamoDBClient":
    """Create a client. Raises Unavailable if AWS isn't configured."""
    with reaching_storage():
        client: DynamoDBClient = sdk_client(session, "dynamodb")
    client.meta.events.register("needs-retry.dynamodb.BatchWriteItem", _leave_throttled_batches)
    for operation in ITEMS_OF:
        client.meta.events.register(f"before-parse.dynamodb.{operation}", parse_items)
    return client


def _leave_throttled_batches(response: Any, **_: Any) -> None:
    """Keep the SDK from retrying a throttled batch.

    It would wait for up to a second, and its caller knows better how long others may wait. The
    SDK's own handler comes after this one, and retries the codes that it knows.
    """
    error = response[1].get("Error", {}) if response is not None else {}
    if error.get("Code") in THROTTLED_CODES:
        error["Code"] = BATCH_THROTTLED


@contextmanager
def reaching_storage() -> Iterator[None]:
    """Turn the SDK's errors into Unavailable. Handle the errors that you expect inside."""
    try:
        yield
    except (BotoCoreError, ResponseParserError) as error:
        logger.error("storage is unreachable: %s", error)
        raise Unavailable("storage is unreachable", retry_after=RETRY_AFTER_SECONDS) from error
    except ClientError as error:
        if error_code(error) == "ValidationException":
            raise  # a bug in Herald, which a retry can't cure
        if _is_conflict(error):
            raise Contended("too many requests at once", retry_after=RETRY_AFTER_SECONDS) from error
        logger.error("storage refused: %s", error)
        raise Unavailable("storage is unavailable", retry_after=RETRY_AFTER_SECONDS) from error


def error_code(error: ClientError) -> str:
    """Return AWS's name for the error."""
    return error.response["Error"]["Code"]


class Cancelled(Exception):
    """A write was cancelled, since a condition of it failed.

    `items` has an entry for each action: the item for which its condition failed (`{}` if the item
    doesn't exist), or None if its condition held.
    """

    def __init__(self, items: list[Item | None]) -> None:
        super().__init__("a condition failed")
        self.items = items


class Store:
    """Herald's tables in DynamoDB.

    Every method raises Unavailable if DynamoDB can't be reached or refuses the call, and Contended
    if other writes to the same item kept getting in the way.
    """

    def __init__(
        self, client: "DynamoDBClient", tables: Tables, retries: Retries = DEFAULT_RETRIES
    ) -> None:
        self.tables = tables
        self._client = client
        self._retries = retries

    def check(self) -> None:
        """Raise Unavailable unless every table can be read."""
        absent: Any = {"S": "-"}
        with reaching_storage():
            self._client.batch_get_item(
                RequestItems={
                    getattr(self.tables, table): {"Keys": [dict.fromkeys(attributes, absent)]}
                    for table, attributes in KEY_ATTRIBUTES.items()
                }
            )

    # --- Reads

    def get(self, table: str, key: Item, **parameters: Any) -> Item | None:
        """Return the item with this key, read consistently, or None."""
        with reaching_storage():
            response = self._client.get_item(
                TableName=table, Key=key, ConsistentRead=True, **parameters
            )
        return response.get("Item")

    def query(self, table: str, **parameters: Any) -> Iterator[ItemPage]:
        """Yield a query's pages. Each is read when it is asked for."""
        yield from self._pages(self._client.query, TableName=table, **parameters)

    def scan(self, table: str, **parameters: Any) -> Iterator[ItemPage]:
        """Yield a scan's pages. Each is read when it is asked for."""
        yield from self._pages(self._client.scan, TableName=table, **parameters)

    def _pages(self, read: Callable[..., Any], **parameters: Any) -> Iterator[ItemPage]:
        while True:
            with reaching_storage():
                response = read(**parameters)
            position = response.get("LastEvaluatedKey")
            yield ItemPage(response["Items"], position)
            if not position:
                return
            parameters["ExclusiveStartKey"] = position

    def batch_get(self, table: str, key: str, values: Sequence[str]) -> Iterator[list[Item]]:
        """Yield pages of the items whose `key` has one of these values, read consistently."""
        keys: list[Item] = [{key: {"S": value}} for value in values]
        yield from self.batch_get_keys(table, keys)

    def batch_get_keys(
        self, table: str, keys: Sequence[Item], **parameters: Any
    ) -> Iterator[list[Item]]:
        """Yield pages of the items with these keys, which are unique, read consistently."""
        for start in range(0, len(keys), MAX_BATCH_GET):
            batch = keys[start : start + MAX_BATCH_GET]
            yield from self._batch_get(table, batch, parameters)

    def _batch_get(
        self, table: str, keys: Sequence[Item], parameters: dict[str, Any]
    ) -> Iterator[list[Item]]:
        """Retry the keys that BatchGetItem leaves unread when throttled or above 16 MB."""
        for attempt in range(self._retries.batch_tries):
            request: Any = {"Keys": keys, "ConsistentRead": True, **parameters}
            with reaching_storage():
                response = self._client.batch_get_item(RequestItems={table: request})
            yield response["Responses"].get(table, [])
            if table not in response["UnprocessedKeys"]:
                return
            keys = list(response["UnprocessedKeys"][table]["Keys"])
            _back_off(self._retries.batch_backoff_seconds, attempt)
        raise Unavailable("storage is too busy", retry_after=RETRY_AFTER_SECONDS)

    # --- Writes

    def put(self, table: str, item: Item) -> None:
        """Put an item, replacing the one that has its key."""
        with reaching_storage():
            self._client.put_item(TableName=table, Item=item)

    def batch_put(self, table: str, items: Sequence[Item]) -> list[Item]:
        """Put up to 25 items in one try, replacing those that have their keys.

        Returns the items that are not written, since DynamoDB throttles. When it raises
        Unavailable, some of them may have been written.
        """
        requests: Any = {table: [{"PutRequest": {"Item": item}} for item in items]}
        with reaching_storage():
            try:
                response = self._client.batch_write_item(RequestItems=requests)
            except ClientError as error:
                if error_code(error) not in THROTTLED_CODES:
                    raise
                return list(items)  # none of them could be written
        unprocessed: Any = response["UnprocessedItems"].get(table, [])
        return [request["PutRequest"]["Item"] for request in unprocessed]

    def batch_write(self, actions: Sequence[Action]) -> None:
        """Carry out every `Put` and `Delete`, each by itself, in calls of 25 and in that order.

        They have different keys, and no conditions. When it raises Unavailable, some of them may
        have been carried out.
        """
        for start in range(0, len(actions), MAX_BATCH_WRITE):
            requests: Any = defaultdict(list)
            for action in actions[start : start + MAX_BATCH_WRITE]:
                table, request = _batch_request(action)
                requests[table].append(request)
            self._batch_write(dict(requests))

    def _batch_write(self, requests: Any) -> None:
        """Retry what BatchWriteItem leaves unprocessed when throttled."""
        for attempt in range(self._retries.batch_tries):
            with reaching_storage():
                try:
                    response = self._client.batch_write_item(RequestItems=requests)
                except ClientError as error:
                    if error_code(error) not in THROTTLED_CODES:
                        raise
                else:
                    requests = response["UnprocessedItems"]
            if not requests:
                return
            _back_off(self._retries.batch_backoff_seconds, attempt)
        raise Unavailable("storage is too busy", retry_after=RETRY_AFTER_SECONDS)

    def transact(self, actions: Sequence[Action]) -> None:
        """Carry out all actions or nothing, in one call. Raises Cancelled if a condition fails.

        The SDK retries with the same token, so that DynamoDB carries the actions out once.
        """
        entries: Any = actions
        with reaching_storage():
            try:
                self._retry_conflicts(
                    lambda: self._client.transact_write_items(TransactItems=entries)
                )
            except ClientError as error:
                if "ConditionalCheckFailed" not in _cancellation_codes(error):
                    raise
                raise Cancelled(_failed_items(error)) from error

    def create(self, action: Action) -> None:
        """Carry out one `Put` outside a transaction. Raises Cancelled if its condition fails."""
        with _conditional():
            self._retry_conflicts(lambda: self._client.put_item(**action["Put"]))

    def delete(self, action: Action) -> None:
        """Carry out one `Delete` outside a transaction. Raises Cancelled if its condition fails."""
        with _conditional():
            self._retry_conflicts(lambda: self._client.delete_item(**action["Delete"]))

    def update(self, action: Action, **parameters: Any) -> Item:
        """Carry out one `Update` outside a transaction, at half the price.

        Returns the attributes that `ReturnValues` asks for. Raises Cancelled if its condition
        fails.
        """
        with _conditional():
            response = self._retry_conflicts(
                lambda: self._client.update_item(**action["Update"], **parameters)
            )
        return response.get("Attributes", {})

    def _retry_conflicts(self, call: Callable[[], _Response]) -> _Response:
        """Repeat `call` while it loses against another transaction on the same item, or while a
        table has no room for a transaction.

        DynamoDB doesn't queue such transactions, and the SDK retries neither:
        https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html
        """
        for attempt in range(self._retries.conflict_tries - 1):
            try:
                return call()
            except ClientError as error:
                if not (_is_conflict(error) or _is_throttled_transaction(error)):
                    raise
            _back_off(self._retries.conflict_backoff_seconds, attempt)
        return call()


def _batch_request(action: Action) -> tuple[str, Any]:
    """Return the table of a `Put` or a `Delete`, and its entry in a BatchWriteItem."""
    [(kind, parameters)] = action.items()
    name = {"Put": "Item", "Delete": "Key"}[kind]
    return parameters["TableName"], {f"{kind}Request": {name: parameters[name]}}


@contextmanager
def _conditional() -> Iterator[None]:
    """Turn the SDK's errors into Unavailable, and a failed condition into Cancelled."""
    with reaching_storage():
        try:
            yield
        except ClientError as error:
            if error_code(error) != "ConditionalCheckFailedException":
                raise
            refusal: Any = error.response
            raise Cancelled([refusal.get("Item", {})]) from error


def _back_off(seconds: float, attempt: int) -> None:
    time.sleep(random.uniform(0, seconds * 2**attempt))


def _failed_items(error: ClientError) -> list[Item | None]:
    """Return the value of `Cancelled.items`."""
    reasons: Any = error.response["CancellationReasons"]
    return [
        reason.get("Item", {}) if reason["Code"] == "ConditionalCheckFailed" else None
        for reason in reasons
    ]


def _cancellation_codes(error: ClientError) -> list[str]:
    """Return why a transaction was cancelled: a code for each action, `"None"` if it was fine."""
    reasons: Any = error.response.get("CancellationReasons", [])
    return [reason.get("Code", "None") for reason in reasons]


def _is_throttled_transaction(error: ClientError) -> bool:
    codes = set(_cancellation_codes(error))
    throttled = codes & {"ThrottlingError", "ProvisionedThroughputExceeded"}
    return bool(throttled) and "ConditionalCheckFailed" not in codes


def _is_conflict(error: ClientError) -> bool:
    codes = {error_code(error), *_cancellation_codes(error)}
    conflict = codes & {"TransactionConflict", "TransactionConflictException"}
    return bool(conflict) and "ConditionalCheckFailed" not in codes
