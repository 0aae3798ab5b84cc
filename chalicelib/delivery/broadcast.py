"""Broadcasts messages: delivers frames to each recipient, records and reports the outcomes."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import Framer
from chalicelib.delivery.outcomes import OutcomeRecorder
from chalicelib.delivery.parcel import RECORDING_SECONDS, Delivery, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Interrupted, Report, Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import EvenSample, Metrics
from chalicelib.store.audience import Page
from chalicelib.store.items import Recipient

MAX_EXPIRED = 1000  # connections that one broadcast disconnects; the next, or the sweep, continues

logger = logging.getLogger("herald.broadcast")


Throttle = Callable[[list[Parcel]], Iterable[list[Parcel]]]
"""Yields the parcels of a page in portions, each when it may be sent."""


def unthrottled(parcels: list[Parcel]) -> Iterable[list[Parcel]]:
    """Return all parcels as one portion, so that only the endpoints limit the rate."""
    return (parcels,)


class Broadcaster:
    """Sends messages to their recipients, and reports the outcome for each recipient."""

    def __init__(
        self,
        *,
        delivery: Delivery,
        outcome_recorder: OutcomeRecorder,
        disconnector: Disconnector,
        metrics: Metrics,
    ) -> None:
        self._delivery = delivery
        self._outcome_recorder = outcome_recorder
        self._disconnector = disconnector
        self._metrics = metrics

    def send(
        self,
        framer: Framer,
        pages: Iterable[Page],
        deadline: Deadline,
        throttle: Throttle = unthrottled,
    ) -> list[Report]:
        """Deliver the messages of a framer; return a report for each.

        Each connection gets its messages in order, in as few frames as possible.

        Args:
            pages: Recipients, each with a selection of these messages.
            deadline: When everything must be delivered and recorded.

        Raises:
            Interrupted: The pages could not be read to their end. Its `reports` cover the
                recipients that were read.
        """
        reports = {message.id: Report(message.id) for message in framer.messages}
        started = time.monotonic()
        retries = 0
        latencies = EvenSample()
        batch = self._outcome_recorder.begin()
        expired: list[Recipient] = []
        try:
            parcels = _parcels(framer, pages, expired, throttle)
            for outcome in self._delivery.deliver(parcels, deadline.earlier(RECORDING_SECONDS)):
                recipient = outcome.recipient
                retries += max(0, outcome.tries - 1)
                for message in outcome.frame.messages:
                    reports[message.id].add(
                        recipient.connection_id, recipient.user_id, outcome.result, outcome.reason
                    )
                if outcome.result is Result.DELIVERED:
                    oldest = outcome.frame.messages[0]
                    latencies.add(time.time() * 1000 - oldest.timestamp)
                else:
                    batch.add(outcome)
        except Unavailable as error:
            raise Interrupted(error, list(reports.values())) from error
        finally:
            batch.finish(deadline)
            self._disconnector.disconnect_expired(expired[:MAX_EXPIRED], deadline)
            self._measure(reports.values(), retries, latencies)
            _log(framer.messages, reports, retries, time.monotonic() - started)
        return list(reports.values())

    def _measure(self, reports: Iterable[Report], retries: int, latencies: EvenSample) -> None:
        for report in reports:
            for result, count in report.counts.items():
                self._metrics.count("Deliveries", count, Outcome=result)
        self._metrics.count("DeliveryRetries", retries)
        for latency in latencies.values:
            self._metrics.value("DeliveryLatency", latency)


def _parcels(
    framer: Framer, pages: Iterable[Page], expired: list[Recipient], throttle: Throttle
) -> Iterator[list[Parcel]]:
    """Yield the parcels for the recipients of each page.

    A recipient whose token has expired gets no parcel, and is added to `expired`.
    """
    for page in pages:
        now = time.time()
        expired += [recipient for recipient, _ in page.recipients if recipient.token_until <= now]
        yield from throttle(
            [
                Parcel(recipient, framer.frames(selection, recipient.user_id))
                for recipient, selection in page.recipients
                if recipient.token_until > now
            ]
        )


def _log(
    messages: Sequence[Message], reports: Mapping[str, Report], retries: int, seconds: float
) -> None:
    """Log a line for each message, with the retries and the duration of the whole broadcast."""
    for message in messages:
        report = reports[message.id]
        logger.info(
            "broadcast",
            extra={
                "messageId": report.id,
                "sender": message.sender,
                **{str(result): count for result, count in report.counts.items()},
                "retries": retries,
                "durationMs": round(seconds * 1000),
            },
        )
