"""The door to DynamoDB: the client's limits, and what its errors mean.

Every call to DynamoDB runs under `reaching_storage`, so that whoever asks gets an answer (503)
in seconds instead of the SDK's default minute.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from chalicelib.errors import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

MAX_BATCH_GET = 100  # keys in one BatchGetItem
RETRY_AFTER_SECONDS = 1.0
CONFLICT_TRIES = 8
CONFLICT_BACKOFF_SECONDS = 0.02

logger = logging.getLogger("herald.storage")

Item = dict[str, Any]
"""A DynamoDB item as its client has it: attribute names to typed values."""


CLIENT_LIMITS = Config(
    connect_timeout=0.5,
    read_timeout=1.0,
    retries={"mode": "standard", "total_max_attempts": 2},
    max_pool_connections=50,
)
"""An answer, or an end, within about three seconds.

AWS answers in milliseconds; half a second to connect and a second to answer, tried twice, is
patient enough.
"""


def dynamodb_client(session: boto3.Session) -> "DynamoDBClient":
    """A client that answers or gives up soon. Raises Unavailable where AWS is not configured."""
    with reaching_storage():
        return session.client("dynamodb", config=CLIENT_LIMITS)


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
        logger.error("storage refused: %s", error)
        raise Unavailable("storage is unavailable", retry_after=RETRY_AFTER_SECONDS) from error


def error_code(error: ClientError) -> str:
    """AWS's name of the error."""
    return error.response["Error"]["Code"]


def cancellation_codes(error: ClientError) -> list[str]:
    """Why a transaction was cancelled: a code for each action, `None` for a fine one."""
    reasons: Any = error.response.get("CancellationReasons", [])
    return [reason.get("Code", "None") for reason in reasons]


def retrying_conflicts(call: Callable[[], object]) -> None:
    """Run `call` again while it loses against another transaction on the same item.

    DynamoDB doesn't queue such transactions, and the SDK doesn't retry them:
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html
    """
    for attempt in range(CONFLICT_TRIES):
        try:
            call()
            return
        except ClientError as error:
            codes = {error_code(error), *cancellation_codes(error)}
            conflict = codes & {"TransactionConflict", "TransactionConflictException"}
            if not conflict or "ConditionalCheckFailed" in codes or attempt + 1 == CONFLICT_TRIES:
                raise
            time.sleep(random.uniform(0, CONFLICT_BACKOFF_SECONDS * 2**attempt))
