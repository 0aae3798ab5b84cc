"""`POST /messages`, from what a client sends to what it is answered."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from chalicelib.auth.principal import Principal
from chalicelib.errors import (
    BadRequest,
    HeraldError,
    IdempotencyKeyReused,
    RequestInProgress,
    Unavailable,
    UnsupportedMediaType,
)
from chalicelib.messaging.dispatch import Dispatcher
from chalicelib.protocol.http_request import idempotency_key, json_body
from chalicelib.protocol.messages import Message, MessageParser
from chalicelib.protocol.reports import Queued, Reply
from chalicelib.protocol.strict_json import encode
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.idempotency import Body, Claim, Idempotency
from chalicelib.store.users import Users

logger = logging.getLogger("herald.submissions")

Parser = Callable[[Principal, Stamp], MessageParser]
"""Parses what a principal sends in one request."""


class Submissions:
    """Takes in messages, sends them, and answers with what became of them."""

    def __init__(
        self,
        *,
        parser: Parser,
        users: Users,
        dispatcher: Dispatcher,
        idempotency: Idempotency,
        now: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        """`now` is the clock, in epoch milliseconds."""
        self._parser = parser
        self._users = users
        self._dispatcher = dispatcher
        self._idempotency = idempotency
        self._now = now
        self._metrics = metrics

    def submit(
        self, sender: Principal, headers: Mapping[str, str], body: str | bytes, deadline: float
    ) -> Reply:
        """Carry a request out, or answer as when that was done. `deadline`: see `Dispatcher.send`.

        Raises UnsupportedMediaType, BadRequest; before these RateLimited, QuotaExceeded, since
        whatever a request holds, its sender pays for it; what `Dispatcher.send` raises; and with
        an `Idempotency-Key`, what `Idempotency.claim` does.
        """
        try:
            return self._submit(sender, headers, body, deadline)
        except HeraldError as error:
            self._metrics.count("MessagesRejected", Reason=error.code)
            raise

    def _submit(
        self, sender: Principal, headers: Mapping[str, str], body: str | bytes, deadline: float
    ) -> Reply:
        started = time.monotonic()
        stamp = Stamp.fresh(self._now())
        self._users.check(sender, stamp.now)
        try:
            key = idempotency_key(headers)
            request = json_body(headers, body)
            messages = self._parser(sender, stamp).batch(request)
            claim = key and self._idempotency.claim(sender, key, request, stamp)
        except (BadRequest, UnsupportedMediaType, RequestInProgress, IdempotencyKeyReused):
            self._users.charge(sender, stamp.now, 0)
            raise
        if isinstance(claim, Reply):
            self._users.charge(sender, stamp.now, 0)
            return claim
        if not claim:
            answer, status = self._carry_out(sender, messages, stamp.now, deadline, started)
            return Reply(encode(answer), status)
        messages = self._parser(sender, claim.stamp).batch(request)
        try:
            answer, status = self._carry_out(sender, messages, stamp.now, deadline, started)
        except BaseException as error:
            refused = isinstance(error, HeraldError) and not isinstance(error, Unavailable)
            nothing_done = refused and claim.stamp == stamp  # by this try, which is the first
            _note(self._idempotency.forget if nothing_done else self._idempotency.release, claim)
            raise
        _note(partial(self._idempotency.finish, body=answer, status=status), claim)
        return Reply(encode(answer), status)

    def _carry_out(
        self,
        sender: Principal,
        messages: Sequence[Message],
        now: int,
        deadline: float,
        started: float,
    ) -> tuple[Body, int]:
        """The answer and its status."""
        self._users.charge(sender, now, len(messages))
        sent = self._dispatcher.send(messages, sender, deadline)
        answer: Body = {"messages": [one.to_dict() for one in sent]}
        if any(isinstance(one, Queued) for one in sent):
            return answer, 202
        return {**answer, "durationMs": round((time.monotonic() - started) * 1000)}, 200


def _note(write: Callable[[Claim], object], claim: Claim) -> None:
    """Note how a claimed request ended. Where that fails the claim runs out by itself, and the next
    try repeats messages under the ids by which their recipients know them."""
    try:
        write(claim)
    except Unavailable as error:
        logger.error("a claim is left to run out: %s", error.detail)
