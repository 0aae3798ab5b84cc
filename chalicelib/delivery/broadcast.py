"""The main job: recipients → delivery → outcomes → report."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import Framer
from chalicelib.delivery.outcomes import SETTLING_SECONDS, OutcomeRecorder
from chalicelib.delivery.parcel import Delivery, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Interrupted, Report, Result
from chalicelib.runtime.metrics import EvenSample, Metrics
from chalicelib.store.audience import Page
from chalicelib.store.items import Recipient

MAX_EXPIRED = 1000  # connections that one broadcast ends; the sweep, or the next, ends more

logger = logging.getLogger("herald.broadcast")


Pace = Callable[[list[Parcel]], Iterable[list[Parcel]]]
"""Hands on parcels, all or some at a time, when they may be sent."""


def at_once(parcels: list[Parcel]) -> Iterable[list[Parcel]]:
    """No pace but that of the endpoints."""
    return (parcels,)


class Broadcaster:
    """Sends messages to their recipients and says honestly what became of each."""

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
        self, framer: Framer, pages: Iterable[Page], deadline: float, pace: Pace = at_once
    ) -> list[Report]:
        """Deliver a framer's messages, to each connection in order; a report for each message.

        All that one connection gets travels together. `pages` have selections of these messages;
        `deadline` is in `time.monotonic` seconds. When the pages can't be read to their end, what
        was sent until then is in the `reports` of the Interrupted that is raised.
        """
        reports = {message.id: Report(message.id) for message in framer.messages}
        started = time.monotonic()
        retries = 0
        latencies = EvenSample()
        settlement = self._outcome_recorder.begin()
        expired: list[Recipient] = []
        try:
            parcels = _parcels(framer, pages, expired, pace)
            for outcome in self._delivery.deliver(parcels, deadline - SETTLING_SECONDS):
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
                    settlement.add(outcome)
        except Unavailable as error:
            raise Interrupted(error, list(reports.values())) from error
        finally:
            settlement.finish(deadline)
            self._disconnector.disconnect_expired(expired[:MAX_EXPIRED], deadline)
            self._measure(reports.values(), retries, latencies)
            _log(list(reports.values()), retries, time.monotonic() - started)
        return list(reports.values())

    def _measure(self, reports: Iterable[Report], retries: int, latencies: EvenSample) -> None:
        for report in reports:
            for result, count in report.counts.items():
                self._metrics.count("Deliveries", count, Outcome=result)
        self._metrics.count("DeliveryRetries", retries)
        for latency in latencies.values:
            self._metrics.value("DeliveryLatency", latency)


def _parcels(
    framer: Framer, pages: Iterable[Page], expired: list[Recipient], pace: Pace
) -> Iterator[list[Parcel]]:
    """What each connection gets. Those whose token has expired get nothing: they are added to
    `expired`."""
    for page in pages:
        now = time.time()
        expired += [recipient for recipient, _ in page.recipients if recipient.token_until <= now]
        yield from pace(
            [
                Parcel(recipient, framer.frames(selection, recipient.user_id))
                for recipient, selection in page.recipients
                if recipient.token_until > now
            ]
        )


def _log(reports: Sequence[Report], retries: int, seconds: float) -> None:
    """A line for each message; what they shared, its time and its retries, in each."""
    for report in reports:
        logger.info(
            "broadcast",
            extra={
                "messageId": report.id,
                **{str(result): count for result, count in report.counts.items()},
                "retries": retries,
                "durationMs": round(seconds * 1000),
            },
        )
