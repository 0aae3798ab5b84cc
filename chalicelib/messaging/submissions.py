"""`POST /messages`: read a request, charge its sender, send its messages, and answer."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from chalicelib.auth.principal import Principal
from chalicelib.clock import Clock
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
from chalicelib.protocol.messages import Draft, accept, parse_messages
from chalicelib.protocol.reports import Queued, Reply, Report
from chalicelib.protocol.strict_json import encode
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.idempotency import Body, Claim, Idempotency
from chalicelib.store.users import Users

logger = logging.getLogger("herald.submissions")

REFUSALS = (BadRequest, UnsupportedMediaType, RequestInProgress, IdempotencyKeyReused)
"""The errors of a request that can't be read, or may not be carried out now."""


class Submissions:
    """Carries out requests to send messages."""

    def __init__(
        self,
        *,
        users: Users,
        dispatcher: Dispatcher,
        idempotency: Idempotency,
        may_encrypt: bool,
        now: Clock,
        metrics: Metrics,
    ) -> None:
        """Take the parts. For `may_encrypt` see `parse_messages`."""
        self._users = users
        self._dispatcher = dispatcher
        self._idempotency = idempotency
        self._may_encrypt = may_encrypt
        self._now = now
        self._metrics = metrics

    def submit(
        self, sender: Principal, headers: Mapping[str, str], body: str | bytes, deadline: Deadline
    ) -> Reply:
        """Send the messages of a request, or return the stored answer of its first try.

        Every request is charged, also one that is refused.

        Args:
            sender: The principal that the request is charged to.
            headers: The request's headers, by their names in lower case.
            body: The request's body, undecoded or as text.
            deadline: See `Dispatcher.send`.

        Raises:
            RateLimited, QuotaExceeded: The sender has no units left.
            UnsupportedMediaType, BadRequest: The request can't be read.
            RequestInProgress, IdempotencyKeyReused: See `Idempotency.claim`.
            HeraldError: What `Dispatcher.send` raises.
        """
        started = time.monotonic()
        stamp = Stamp.fresh(self._now())
        with self._counting_rejections():
            self._users.check(sender, stamp.now)
            try:
                drafts, claim = self._read(sender, headers, body, stamp)
            except REFUSALS:
                self._users.charge(sender, stamp.now, 0)
                raise
            if isinstance(claim, Reply):
                self._users.charge(sender, stamp.now, 0)
                return claim
            with self._ending_claim_on_failure(claim, stamp):
                messages = accept(
                    drafts, sender=sender.user_id, stamp=claim.stamp if claim else stamp
                )
                units = self._dispatcher.units(messages)
                self._users.charge(sender, stamp.now, len(messages), units=units)
                sent = self._dispatcher.send(messages, sender, deadline, paid=units)
            answer, status = _answer(sent, time.monotonic() - started)
            if claim is not None:
                with _logging_unavailable():
                    self._idempotency.finish(claim, answer, status)
            return Reply(encode(answer), status)

    def _read(
        self, sender: Principal, headers: Mapping[str, str], body: str | bytes, stamp: Stamp
    ) -> tuple[list[Draft], Claim | Reply | None]:
        """Return a request's drafts, and the claim or stored answer of its key, or None."""
        key = idempotency_key(headers)
        request = json_body(headers, body)
        drafts = parse_messages(request, may_encrypt=self._may_encrypt)
        if key is None:
            return drafts, None
        return drafts, self._idempotency.claim(sender, key, request, stamp)

    @contextmanager
    def _counting_rejections(self) -> Iterator[None]:
        """Count an error in the metrics."""
        try:
            yield
        except HeraldError as error:
            self._metrics.count("MessagesRejected", Reason=error.code)
            raise

    @contextmanager
    def _ending_claim_on_failure(self, claim: Claim | None, stamp: Stamp) -> Iterator[None]:
        """End a claim when an error prevents its request from being carried out.

        If this is the first try (its stamp is the claim's) and the request was refused, nothing was
        done: the key is forgotten, and any request may use it. Otherwise the claim is released, and
        the next try continues this request under the same ids.
        """
        try:
            yield
        except BaseException as error:
            if claim is not None:
                refused = isinstance(error, HeraldError) and not isinstance(error, Unavailable)
                with _logging_unavailable():
                    if refused and claim.stamp == stamp:
                        self._idempotency.forget(claim)
                    else:
                        self._idempotency.release(claim)
            raise


def _answer(sent: Sequence[Report | Queued], seconds: float) -> tuple[Body, int]:
    """Return the body of an answer, and its status."""
    answer: Body = {"messages": [one.to_dict() for one in sent]}
    if any(isinstance(one, Queued) for one in sent):
        return answer, 202
    return {**answer, "durationMs": round(seconds * 1000)}, 200


@contextmanager
def _logging_unavailable() -> Iterator[None]:
    """Log, instead of raising, that a claim could not be updated.

    Such a claim expires by itself. The next try then repeats the messages under the same ids, so
    that recipients drop those that they have.
    """
    try:
        yield
    except Unavailable as error:
        logger.error("a claim was not updated and will expire: %s", error.detail)
