"""DynamoDB: every call that Herald makes to it, and what its errors mean.

The client's time-outs are short (see `runtime.aws`), so that a caller gets a 503 within seconds
instead of after the SDK's default minute.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from botocore.session import Session

from chalicelib import aws_limits
from chalicelib.errors import Contended, Unavailable
from chalicelib.runtime.aws import sdk_client
from chalicelib.store.expressions import Action
from chalicelib.store.items import Item, Tables

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

MAX_BATCH_GET = aws_limits.BATCH_GET_KEYS
MAX_BATCH_WRITE = aws_limits.BATCH_WRITE_ITEMS
BATCH_TRIES = 5
BATCH_BACKOFF_SECONDS = 0.05
RETRY_AFTER_SECONDS = 1.0
CONFLICT_TRIES = 8
CONFLICT_BACKOFF_SECONDS = 0.02


class ItemPage(NamedTuple):
    """A page of a query or a scan. `position` is the key after which the next one starts, or
    None."""

    items: list[Item]
    position: Item | None


logger = logging.getLogger("herald.storage")


def dynamodb_client(session: Session) -> "DynamoDBClient":
    """Create a client. Raises Unavailable where AWS is not configured."""
    with reaching_storage():
        client: DynamoDBClient = sdk_client(session, "dynamodb")
    return client


@contextmanager
def reaching_storage() -> Iterator[None]:
    """Turn the SDK's errors into Unavailable; handle the ones that you expect within."""
    try:
        yield
    except (BotoCoreError, ResponseParserError) as error:
        logger.error("storage is unreachable: %s", error)
        raise Unavailable("storage is unreachable", retry_after=RETRY_AFTER_SECONDS) from error
    except ClientError as error:
        if error_code(error) == "ValidationException":
            raise  # a mistake in Herald, which waiting doesn't cure
        if _is_conflict(error):
            raise Contended("too much at once", retry_after=RETRY_AFTER_SECONDS) from error
        logger.error("storage refused: %s", error)
        raise Unavailable("storage is unavailable", retry_after=RETRY_AFTER_SECONDS) from error


def error_code(error: ClientError) -> str:
    """Return AWS's name of the error."""
    return error.response["Error"]["Code"]


class Cancelled(Exception):
    """A write whose conditions don't hold. `items` has an entry for each action: the item whose
    condition failed, {} where there is none, and None for a condition that holds."""

    def __init__(self, items: list[Item | None]) -> None:
        super().__init__("a condition does not hold")
        self.items = items


class Store:
    """Herald's tables in DynamoDB. All methods raise Unavailable when DynamoDB can't be reached."""

    def __init__(self, client: "DynamoDBClient", tables: Tables) -> None:
        self.tables = tables
        self._client = client

    def check(self) -> None:
        """Read from every table; raise Unavailable unless all can be read."""
        absent: Any = {"S": "-"}
        tables = self.tables
        with reaching_storage():
            self._client.batch_get_item(
                RequestItems={
                    tables.connections: {"Keys": [{"connectionId": absent}]},
                    tables.users: {"Keys": [{"user": absent}]},
                    tables.groups: {"Keys": [{"group": absent, "connectionId": absent}]},
                    tables.messages: {"Keys": [{"id": absent}]},
                    tables.history: {"Keys": [{"stream": absent, "position": absent}]},
                }
            )

    # --- Reads

    def get(self, table: str, key: Item, **parameters: Any) -> Item | None:
        """Return the item with this key as it is at this moment, or None."""
        with reaching_storage():
            answer = self._client.get_item(
                TableName=table, Key=key, ConsistentRead=True, **parameters
            )
        return answer.get("Item")

    def query(self, table: str, **parameters: Any) -> Iterator[ItemPage]:
        """Yield a query's pages; the next one is read when it is asked for."""
        yield from self._pages(self._client.query, TableName=table, **parameters)

    def scan(self, table: str, **parameters: Any) -> Iterator[ItemPage]:
        """Yield a scan's pages; the next one is read when it is asked for."""
        yield from self._pages(self._client.scan, TableName=table, **parameters)

    def _pages(self, read: Callable[..., Any], **parameters: Any) -> Iterator[ItemPage]:
        while True:
            with reaching_storage():
                answer = read(**parameters)
            position = answer.get("LastEvaluatedKey")
            yield ItemPage(answer["Items"], position)
            if not position:
                return
            parameters["ExclusiveStartKey"] = position

    def batch_get(self, table: str, key: str, values: Sequence[str]) -> Iterator[list[Item]]:
        """Yield the items with these values of `key`, in pages, as they are at this moment."""
        for start in range(0, len(values), MAX_BATCH_GET):
            keys: list[Any] = [
                {key: {"S": value}} for value in values[start : start + MAX_BATCH_GET]
            ]
            yield from self._batch_get_one(table, keys)

    def _batch_get_one(self, table: str, keys: list[Any]) -> Iterator[list[Item]]:
        """Ask again for keys that BatchGetItem left unread: it throttles, or reached 16 MB."""
        for attempt in range(BATCH_TRIES):
            with reaching_storage():
                answer = self._client.batch_get_item(
                    RequestItems={table: {"Keys": keys, "ConsistentRead": True}}
                )
            yield answer["Responses"].get(table, [])
            if table not in answer["UnprocessedKeys"]:
                return
            keys = list(answer["UnprocessedKeys"][table]["Keys"])
            _back_off(attempt)
        raise Unavailable("storage is too busy", retry_after=RETRY_AFTER_SECONDS)

    # --- Writes

    def put(self, table: str, item: Item) -> None:
        """Put an item, replacing the one with its key."""
        with reaching_storage():
            self._client.put_item(TableName=table, Item=item)

    def batch_put(self, table: str, items: Sequence[Item]) -> None:
        """Put up to 25 items, replacing those with their keys. When it raises Unavailable, some
        may be written."""
        requests: Any = {table: [{"PutRequest": {"Item": item}} for item in items]}
        for attempt in range(BATCH_TRIES):
            with reaching_storage():
                answer = self._client.batch_write_item(RequestItems=requests)
            requests = answer["UnprocessedItems"]  # DynamoDB throttles
            if not requests:
                return
            _back_off(attempt)
        raise Unavailable("storage is too busy", retry_after=RETRY_AFTER_SECONDS)

    def transact(self, actions: Sequence[Action]) -> None:
        """Write all actions or none, in one call. Raises Cancelled when a condition fails.

        The SDK sends its second try with the same token, so that DynamoDB carries it out once.
        """
        entries: Any = actions
        with reaching_storage():
            try:
                _retrying_conflicts(
                    lambda: self._client.transact_write_items(TransactItems=entries)
                )
            except ClientError as error:
                if "ConditionalCheckFailed" not in _cancellation_codes(error):
                    raise
                raise Cancelled(_failed_items(error)) from error

    def update(self, action: Action, **parameters: Any) -> Item:
        """Make one `Update` outside a transaction, at half of a transaction's price.

        Returns the attributes that `ReturnValues` asks for. Raises Cancelled when its condition
        fails.
        """
        answers: list[Any] = []
        with reaching_storage():
            try:
                _retrying_conflicts(
                    lambda: answers.append(
                        self._client.update_item(**action["Update"], **parameters)
                    )
                )
            except ClientError as error:
                if error_code(error) != "ConditionalCheckFailedException":
                    raise
                response: Any = error.response
                raise Cancelled([response.get("Item", {})]) from error
        attributes: Item = answers[-1].get("Attributes", {})
        return attributes


def _back_off(attempt: int) -> None:
    time.sleep(random.uniform(0, BATCH_BACKOFF_SECONDS * 2**attempt))


def _failed_items(error: ClientError) -> list[Item | None]:
    """Return what `Cancelled.items` holds."""
    reasons: Any = error.response["CancellationReasons"]
    return [
        reason.get("Item", {}) if reason["Code"] == "ConditionalCheckFailed" else None
        for reason in reasons
    ]


def _cancellation_codes(error: ClientError) -> list[str]:
    """Why a transaction was cancelled: a code for each action, `None` for a fine one."""
    reasons: Any = error.response.get("CancellationReasons", [])
    return [reason.get("Code", "None") for reason in reasons]


def _is_conflict(error: ClientError) -> bool:
    codes = {error_code(error), *_cancellation_codes(error)}
    conflict = codes & {"TransactionConflict", "TransactionConflictException"}
    return bool(conflict) and "ConditionalCheckFailed" not in codes


def _retrying_conflicts(call: Callable[[], object]) -> None:
    """Run `call` again while it loses against another transaction on the same item.

    DynamoDB doesn't queue such transactions, and the SDK doesn't retry them:
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html
    """
    for attempt in range(CONFLICT_TRIES):
        try:
            call()
            return
        except ClientError as error:
            if not _is_conflict(error) or attempt + 1 == CONFLICT_TRIES:
                raise
            time.sleep(random.uniform(0, CONFLICT_BACKOFF_SECONDS * 2**attempt))
