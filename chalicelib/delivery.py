"""Frames to `@connections`, many at a time, and what each answer means.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-how-to-call-websocket-api-connections.html
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.connections import Recipient
from chalicelib.errors import HeraldError
from chalicelib.messages import Frame, Result

if TYPE_CHECKING:
    from mypy_boto3_apigatewaymanagementapi.client import ApiGatewayManagementApiClient

CONCURRENCY = 64
TRIES = 4
BACKOFF_SECONDS = 0.1
TRANSIENT_STATUSES = frozenset({408, 429, *range(500, 600)})

logger = logging.getLogger("herald.delivery")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one frame for one recipient. `reason` is for reports and logs."""

    recipient: Recipient
    frame: Frame
    result: Result
    reason: str


class Delivery:
    """Sends frames; keeps its connections to API Gateway from one invocation to the next."""

    def __init__(
        self, client_for: Callable[[str], "ApiGatewayManagementApiClient"], endpoint: str | None
    ) -> None:
        """`client_for` makes a client for an endpoint; `endpoint` overrides every recipient's."""
        self._client_for = cache(client_for)
        self._endpoint = endpoint
        self._threads = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="delivery")

    def deliver(
        self,
        frames: Sequence[Frame],
        recipients: Iterable[Recipient],
        settle: Callable[[Outcome], None],
        deadline: float,
    ) -> Iterator[Outcome]:
        """Send every frame, in order, to each recipient; one recipient's failure is its own.

        `settle` is run for each outcome that is not a delivery, beside the sending. `deadline` is
        in `time.monotonic` seconds: no retry starts after it. Outcomes come as they are consumed,
        so that neither recipients nor outcomes pile up.
        """

        def send(recipient: Recipient) -> list[Outcome]:
            outcomes = list(self._send_in_order(frames, recipient, deadline))
            if outcomes[-1].result is not Result.DELIVERED:
                settle(outcomes[-1])
            return outcomes

        under_way: deque[Future[list[Outcome]]] = deque()
        broken_off: HeraldError | None = None
        try:
            for recipient in recipients:
                under_way.append(self._threads.submit(send, recipient))
                if len(under_way) >= 2 * CONCURRENCY:
                    yield from under_way.popleft().result()
        except HeraldError as error:
            broken_off = error  # those before it are on their way, and count
        while under_way:
            yield from under_way.popleft().result()
        if broken_off is not None:
            raise broken_off

    def _send_in_order(
        self, frames: Sequence[Frame], recipient: Recipient, deadline: float
    ) -> Iterator[Outcome]:
        result, reason = Result.DELIVERED, ""
        for frame in frames:
            # After a failed frame, a later one would arrive out of order.
            if result is Result.DELIVERED:
                result, reason = self.post(
                    recipient.connection_id, recipient.endpoint, frame.body, deadline
                )
            yield Outcome(recipient, frame, result, reason)

    def post(
        self, connection_id: str, endpoint: str, body: bytes, deadline: float
    ) -> tuple[Result, str]:
        """Send one frame to one connection; what became of it, and the reason."""
        client = self._client_for(self._endpoint or endpoint)
        result, reason = Result.STALE, "deadline"
        for attempt in range(TRIES):
            if attempt:
                pause = random.uniform(0, BACKOFF_SECONDS * 2**attempt)
                if time.monotonic() + pause > deadline:
                    break
                time.sleep(pause)
            try:
                client.post_to_connection(ConnectionId=connection_id, Data=body)
                return Result.DELIVERED, ""
            except BotoCoreError as error:
                result, reason = Result.STALE, _transport_reason(error)
            except ClientError as error:
                result, reason = _meaning(error)
            if result is not Result.STALE:
                break
        return result, reason


def _transport_reason(error: BotoCoreError) -> str:
    return "timeout" if "Timeout" in type(error).__name__ else "connection_failed"


def _meaning(error: ClientError) -> tuple[Result, str]:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status == 410:
        return Result.GONE, "gone"
    if status in TRANSIENT_STATUSES:
        return Result.STALE, "throttled" if status == 429 else f"http_{status}"
    return Result.REJECTED, f"http_{status}"


def management_client(endpoint: str) -> "ApiGatewayManagementApiClient":
    """A client for one WebSocket API. `Delivery` retries, so that a deadline bounds it."""
    return boto3.client(
        "apigatewaymanagementapi",
        endpoint_url=endpoint,
        config=Config(
            connect_timeout=1.0,
            read_timeout=3.0,
            retries={"total_max_attempts": 1},
            max_pool_connections=CONCURRENCY,
        ),
    )
