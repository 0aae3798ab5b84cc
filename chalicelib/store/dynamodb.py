"""The door to DynamoDB: the client's limits, and what its errors mean.

Every call to DynamoDB runs under `reaching_storage`, so that whoever asks gets an answer (503)
in seconds instead of the SDK's default minute.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from botocore.session import Session

from chalicelib.errors import Contended, Unavailable
from chalicelib.runtime.aws import sdk_client
from chalicelib.store.expressions import Action
from chalicelib.store.items import Item, Tables

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

MAX_BATCH_GET = 100  # keys in one BatchGetItem
MAX_BATCH_WRITE = 25  # items in one BatchWriteItem
BATCH_TRIES = 5
BATCH_BACKOFF_SECONDS = 0.05
RETRY_AFTER_SECONDS = 1.0
CONFLICT_TRIES = 8
CONFLICT_BACKOFF_SECONDS = 0.02

logger = logging.getLogger("herald.storage")


def dynamodb_client(session: Session) -> "DynamoDBClient":
    """A client of it. Raises Unavailable where AWS is not configured."""
    with reaching_storage():
        client: DynamoDBClient = sdk_client(session, "dynamodb")
    return client


def check(client: "DynamoDBClient", tables: Tables) -> None:
    """Raise Unavailable unless all tables can be read."""
    absent: Any = {"S": "-"}
    with reaching_storage():
        client.batch_get_item(
            RequestItems={
                tables.connections: {"Keys": [{"connectionId": absent}]},
                tables.users: {"Keys": [{"user": absent}]},
                tables.groups: {"Keys": [{"group": absent, "connectionId": absent}]},
                tables.messages: {"Keys": [{"id": absent}]},
                tables.history: {"Keys": [{"stream": absent, "position": absent}]},
            }
        )


@contextmanager
def reaching_storage() -> Iterator[None]:
    """Turn the SDK's errors into Unavailable; a caller handles the ones that it expects within."""
    try:
        yield
    except (BotoCoreError, ResponseParserError) as error:
        logger.error("storage is unreachable: %s", error)
        raise Unavailable("storage is unreachable", retry_after=RETRY_AFTER_SECONDS) from error
    except ClientError as error:
        if error_code(error) == "ValidationException":
            raise  # our own mistake, which waiting doesn't mend
        if _is_conflict(error):
            raise Contended("too much at once", retry_after=RETRY_AFTER_SECONDS) from error
        logger.error("storage refused: %s", error)
        raise Unavailable("storage is unavailable", retry_after=RETRY_AFTER_SECONDS) from error


def error_code(error: ClientError) -> str:
    """AWS's name of the error."""
    return error.response["Error"]["Code"]


def batch_get(
    client: "DynamoDBClient", table: str, key: str, values: Sequence[str]
) -> Iterator[list[Item]]:
    """The items with these keys, in pages, as they are at this moment. Raises Unavailable."""
    for start in range(0, len(values), MAX_BATCH_GET):
        keys: list[Any] = [{key: {"S": value}} for value in values[start : start + MAX_BATCH_GET]]
        yield from _batch_get_one(client, table, keys)


def _batch_get_one(client: "DynamoDBClient", table: str, keys: list[Any]) -> Iterator[list[Item]]:
    """BatchGetItem may leave keys unread, in a throttled moment or above 16 MB: ask again."""
    for attempt in range(BATCH_TRIES):
        with reaching_storage():
            answer = client.batch_get_item(
                RequestItems={table: {"Keys": keys, "ConsistentRead": True}}
            )
        yield answer["Responses"].get(table, [])
        if table not in answer["UnprocessedKeys"]:
            return
        keys = list(answer["UnprocessedKeys"][table]["Keys"])
        time.sleep(random.uniform(0, BATCH_BACKOFF_SECONDS * 2**attempt))
    raise Unavailable("storage is too busy", retry_after=RETRY_AFTER_SECONDS)


def batch_put(client: "DynamoDBClient", table: str, items: Sequence[Item]) -> None:
    """Put up to 25 items, whatever was there. Raises Unavailable; some may be written then."""
    requests: Any = {table: [{"PutRequest": {"Item": item}} for item in items]}
    for attempt in range(BATCH_TRIES):
        with reaching_storage():
            answer = client.batch_write_item(RequestItems=requests)
        requests = answer["UnprocessedItems"]  # in a throttled moment
        if not requests:
            return
        time.sleep(random.uniform(0, BATCH_BACKOFF_SECONDS * 2**attempt))
    raise Unavailable("storage is too busy", retry_after=RETRY_AFTER_SECONDS)


class Cancelled(Exception):
    """A write whose conditions don't hold. `items` has an entry for each action: the item whose
    condition failed, {} where there is none, and None for a condition that holds."""

    def __init__(self, items: list[Item | None]) -> None:
        super().__init__("a condition does not hold")
        self.items = items


def transact(client: "DynamoDBClient", actions: Sequence[Action]) -> None:
    """Write all or nothing, in one call. Raises Cancelled when a condition fails, and Unavailable.

    The SDK's own second try has the same token, so it changes nothing that the first has done.
    """
    entries: Any = actions
    with reaching_storage():
        try:
            _retrying_conflicts(lambda: client.transact_write_items(TransactItems=entries))
        except ClientError as error:
            if "ConditionalCheckFailed" not in _cancellation_codes(error):
                raise
            reasons: Any = error.response["CancellationReasons"]
            raise Cancelled(
                [
                    reason.get("Item", {}) if reason["Code"] == "ConditionalCheckFailed" else None
                    for reason in reasons
                ]
            ) from error


def update_one(client: "DynamoDBClient", action: Action, **parameters: Any) -> Item:
    """Make one `Update` by itself, which costs half of what a transaction does; the attributes
    that `ReturnValues` asks for. Raises Cancelled when its condition fails, and Unavailable."""
    answers: list[Any] = []
    with reaching_storage():
        try:
            _retrying_conflicts(
                lambda: answers.append(client.update_item(**action["Update"], **parameters))
            )
        except ClientError as error:
            if error_code(error) != "ConditionalCheckFailedException":
                raise
            response: Any = error.response
            raise Cancelled([response.get("Item", {})]) from error
    attributes: Item = answers[-1].get("Attributes", {})
    return attributes


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
