"""The main job: audience → delivery → consequences → report."""

import logging
import time
from collections.abc import Callable, Sequence

from chalicelib.audience import Audiences
from chalicelib.connections import Connections
from chalicelib.delivery import Delivery, Outcome
from chalicelib.errors import Unavailable
from chalicelib.messages import AudienceKind, Batch, Message, Report, Result, batches
from chalicelib.principal import Principal, Scope

logger = logging.getLogger("herald.broadcast")


class Broadcaster:
    """Sends messages to their audiences and says honestly what became of each."""

    def __init__(
        self,
        audiences: Audiences,
        delivery: Delivery,
        connections: Connections,
        now: Callable[[], int],
    ) -> None:
        """`now` is the clock, in epoch milliseconds."""
        self._audiences = audiences
        self._delivery = delivery
        self._connections = connections
        self._now = now

    def send(self, messages: Sequence[Message], sender: Principal, deadline: float) -> list[Report]:
        """Deliver `messages` in order; a report for each. `deadline`: see `Delivery.deliver`.

        All of them are checked before any is sent. Raises Forbidden, PayloadTooLarge, and
        Unavailable when storage failed before the first recipient; one that fails later ends the
        sending, and what had been sent until then is in the `reports` of what is raised.
        """
        for message in messages:
            sender.require(_scope_for(message))
        planned = list(batches(messages))
        reports = {message.id: Report(message.id) for message in messages}
        try:
            for batch in planned:
                self._send_batch(batch, sender.tenant, deadline, reports)
        except Unavailable as error:
            raise Interrupted(error, list(reports.values())) from error
        return list(reports.values())

    def _send_batch(
        self, batch: Batch, tenant: str | None, deadline: float, reports: dict[str, Report]
    ) -> None:
        recipients = self._audiences.recipients(batch.audience, tenant)
        for outcome in self._delivery.deliver(batch.frames, recipients, self._settle, deadline):
            recipient = outcome.recipient
            for message in outcome.frame.messages:
                reports[message.id].add(
                    recipient.connection_id, recipient.user_id, outcome.result, outcome.reason
                )

    def _settle(self, outcome: Outcome) -> None:
        """Keep the connections true to what a delivery showed."""
        recipient = outcome.recipient
        logger.info(
            "not delivered",
            extra={
                "connectionId": recipient.connection_id,
                "userId": recipient.user_id,
                "result": str(outcome.result),
                "reason": outcome.reason,
                "messageId": outcome.frame.messages[0].id,
            },
        )
        try:
            if outcome.result is Result.STALE:
                self._connections.mark_stale(recipient.connection_id)
            else:
                self._connections.close(
                    recipient.connection_id, recipient.tenant, recipient.user_id, self._now()
                )
        except Unavailable:
            # The report stands; the next delivery to this connection will find the same.
            logger.warning("could not record that %s is %s", recipient, outcome.result)


class Interrupted(Unavailable):
    """Storage failed while messages were being sent; `reports` say how far they came."""

    def __init__(self, error: Unavailable, reports: list[Report]) -> None:
        super().__init__(error.detail, retry_after=error.retry_after)
        self.reports = reports


def _scope_for(message: Message) -> Scope:
    if message.audience.kind is AudienceKind.ALL:
        return Scope.MESSAGES_BROADCAST
    return Scope.MESSAGES_SEND


def deadline_after(seconds: float) -> float:
    """A deadline so many seconds from now, in `time.monotonic` seconds."""
    return time.monotonic() + seconds
