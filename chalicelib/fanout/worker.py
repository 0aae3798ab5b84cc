"""The worker: delivers queued messages to their audience, shard by shard.

A request becomes jobs, one for each shard of its audience. A worker delivers a job's shard for a
slice of time, records how far it came, and re-queues the rest behind jobs that arrived in the
meantime. Jobs with the same target are delivered as one batch, with one read of the recipients.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from chalicelib.clock import Clock
from chalicelib.delivery.broadcast import Broadcaster
from chalicelib.delivery.frames import Framer, Framing
from chalicelib.delivery.parcel import Parcel
from chalicelib.errors import HeraldError, KeysUnavailable, Unavailable
from chalicelib.fanout.charges import FanoutCharges, SentCopies, paid_after
from chalicelib.fanout.limits import DEFAULT_LIMITS, FanoutLimits
from chalicelib.fanout.progress import ClaimedMessages, Progress, ShardPosition, ShardTaken
from chalicelib.fanout.queue import MAX_RECEIVES, Job, Queue, ReceivedJob, Target
from chalicelib.fanout.rate import FanoutRateLimiter
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Report
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.logs import attribute, correlated
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.audience import Audiences, Page

RESERVED_SECONDS = 3.0  # for the last recipients; with less time left, no job is begun
BATCH_BYTES = 16 * 1024 * 1024  # of messages, which a worker holds in memory
BATCH_REQUESTS = 100

logger = logging.getLogger("herald.fanout")

Batch = Sequence[ReceivedJob]
"""Jobs with one target, in the order in which SQS delivered them."""

Requeue = defaultdict[str, dict[str, int]]
"""What to re-queue: for a position in the shard the requests, each with its size in bytes."""


class _Claim(NamedTuple):
    """A request that a job may deliver, from `start` on."""

    start: ShardPosition
    job: Job
    claimed: ClaimedMessages

    @property
    def messages(self) -> list[Message]:
        """Return the messages of the request."""
        return self.claimed.messages


class _Slice(NamedTuple):
    """What was delivered in a slice of time, with a report by message id.

    `position` is that of the last recipient, None at the shard's end.
    """

    position: str | None
    reports: Mapping[str, Report]
    copies: SentCopies


class Worker:
    """Runs the jobs that SQS delivers."""

    def __init__(
        self,
        *,
        audiences: Audiences,
        broadcaster: Broadcaster,
        progress: Progress,
        queue: Queue,
        rate_limiter: FanoutRateLimiter,
        charges: FanoutCharges,
        framing: Framing,
        now: Clock,
        metrics: Metrics,
        limits: FanoutLimits = DEFAULT_LIMITS,
    ) -> None:
        self._audiences = audiences
        self._broadcaster = broadcaster
        self._progress = progress
        self._queue = queue
        self._rate_limiter = rate_limiter
        self._charges = charges
        self._framing = framing
        self._now = now
        self._metrics = metrics
        self._limits = limits

    def work(self, records: Iterable[Mapping[str, Any]], deadline: Deadline) -> list[str]:
        """Run the jobs of a Lambda event.

        Args:
            records: The records of the event.
            deadline: When the work must end.

        Returns:
            The SQS message ids of the jobs that failed, which SQS has to deliver again.
        """
        failed: list[str] = []
        jobs: list[ReceivedJob] = []
        for record in records:
            try:
                jobs.append(ReceivedJob.from_record(record))
            except ValueError as error:
                failed.append(record["messageId"])
                fields = {"sqsMessageId": record["messageId"]}
                logger.error("a queue message failed: %s", error, extra=fields)
        batches = _batches(jobs)
        for batch in batches:
            failed += self._run(batch, self._limits.slice_seconds / len(batches), deadline)
        return failed

    def _run(self, batch: Batch, seconds: float, deadline: Deadline) -> list[str]:
        """Run a batch for some seconds; return the SQS message ids of the jobs that failed.

        If the batch fails, each request is run alone, so that one that always fails doesn't block
        the others.
        """
        try:
            self._run_batch(batch, deadline.within(seconds), deadline)
        except Exception as error:
            requests = _split(batch)
            if isinstance(error, Unavailable) and not isinstance(error, KeysUnavailable):
                logger.error("jobs will be retried: %s", error.detail, extra=_log_fields(batch))
            elif len(requests) > 1:
                share = seconds / len(requests)
                failures = [self._run([request], share, deadline) for request in requests]
                return [message_id for failed in failures for message_id in failed]
            elif isinstance(error, HeraldError):
                logger.error("a job failed: %s", error.detail, extra=_log_fields(batch))
            else:
                logger.exception("a job failed", extra=_log_fields(batch))
        else:
            return []
        return [received.message_id for received in batch]

    def _run_batch(self, batch: Batch, end: Deadline, deadline: Deadline) -> None:
        """Claim the batch's requests, deliver what is read until `end`, and re-queue the rest."""
        if deadline.earlier(RESERVED_SECONDS).passed():  # other jobs took the time
            self._queue.put([received.job for received in batch])
            return
        target = batch[0].job.target
        claims, requeue = self._claim(batch)
        if claims:
            ids = {claim.claimed.correlation_id or "" for claim in claims.values()}
            with correlated(" ".join(sorted(ids)).strip() or None):
                attribute(target.tenant)
                delivered = self._deliver(target, claims, end, deadline)
                self._advance(claims, delivered, requeue)
        self._queue.put(
            [
                Job(requests, target._replace(shard=target.shard._replace(after=after)))
                for after, requests in requeue.items()
            ]
        )

    def _claim(self, batch: Batch) -> tuple[dict[str, _Claim], Requeue]:
        """Claim the batch's requests.

        Returns the claims by request, and what to re-queue: the rest of requests that one of these
        jobs has delivered before, since its worker may have died before it re-queued them.
        """
        claims: dict[str, _Claim] = {}
        requeue: Requeue = defaultdict(dict)
        for received in batch:
            job, shard = received.job, received.job.target.shard
            last_try = self._now() if received.receives >= MAX_RECEIVES else None
            for request, size in job.requests.items():
                start = ShardPosition(request, shard.number, shard.after)
                try:
                    claimed = self._progress.claim(start, job.id, last_try)
                except ShardTaken as taken:
                    if taken.requeue_from is not None:
                        requeue[taken.requeue_from][request] = size
                else:
                    claims[request] = _Claim(start, job, claimed)
        return claims, requeue

    def _deliver(
        self, target: Target, claims: Mapping[str, _Claim], end: Deadline, deadline: Deadline
    ) -> _Slice:
        """Deliver the claimed messages to the recipients that are read until `end`.

        Charges the senders for what is sent, even if a page fails.
        """
        messages = sorted(
            (message for claim in claims.values() for message in claim.messages),
            key=lambda message: message.id,  # keeps each sender's order
        )
        framer = self._framing.framer(messages, target.tenant)
        time_slice = self._time_slice(target, framer, end)
        throttled_until = deadline.earlier(RESERVED_SECONDS)
        tenant_throttle = self._rate_limiter.for_tenant(target.tenant, throttled_until)
        copies = SentCopies({m.id: request for request, c in claims.items() for m in c.messages})

        def throttle(parcels: list[Parcel]) -> Iterator[list[Parcel]]:
            copies.add(parcels)
            return tenant_throttle.throttle(parcels)

        try:
            reports = self._broadcaster.send(framer, time_slice, deadline, throttle)
        finally:
            self._charges.charge(
                (claim.start, claim.claimed, copies.of(request))
                for request, claim in claims.items()
            )
        return _Slice(time_slice.position, {report.id: report for report in reports}, copies)

    def _time_slice(self, target: Target, framer: Framer, end: Deadline) -> "_TimeSlice":
        """Return the pages of a slice, none of which takes more than a second of the rate."""
        most = self._limits.page_items
        share = self._rate_limiter.share()
        if share is not None:
            most = min(most, max(1, int(share / framer.most_frames)))
        audiences = [message.audience for message in framer.messages]
        return _TimeSlice(self._audiences.pages(audiences, target.tenant, target.shard, most), end)

    def _advance(
        self,
        claims: Mapping[str, _Claim],
        delivered: _Slice,
        requeue: Requeue,
    ) -> None:
        """Record what was delivered, and add the rest to `requeue`."""
        for request, claim in claims.items():
            rest = self._progress.advance(
                claim.start,
                claim.job.id,
                delivered.position,
                [delivered.reports[message.id] for message in claim.messages],
                paid=paid_after(claim.claimed.paid, delivered.copies.of(request)),
            )
            if rest is not None:
                requeue[rest][request] = claim.job.requests[request]
            else:
                accepted_at = claim.messages[0].timestamp
                self._metrics.value("FanoutDuration", self._now() - accepted_at)


class _TimeSlice:
    """The pages that are taken until `end`, at least one.

    `position` is that of the last page that was taken, None at the end of all pages.
    """

    def __init__(self, pages: Iterable[Page], end: Deadline) -> None:
        self._pages = pages
        self._end = end
        self.position: str | None = None

    def __iter__(self) -> Iterator[Page]:
        for page in self._pages:
            self.position = page.position
            yield page
            if self._end.passed():
                return
        self.position = None


def _batches(jobs: Iterable[ReceivedJob]) -> list[Batch]:
    """Put jobs with the same target into batches of a limited size."""
    batches: list[list[ReceivedJob]] = []
    open_batches: dict[Target, tuple[list[ReceivedJob], dict[str, int]]] = {}
    for received in jobs:
        job = received.job
        batch, requests = open_batches.get(job.target, ([], {}))
        requests = {**requests, **job.requests}
        if not batch or len(requests) > BATCH_REQUESTS or sum(requests.values()) > BATCH_BYTES:
            batch, requests = [], dict(job.requests)
            batches.append(batch)
        batch.append(received)
        open_batches[job.target] = batch, requests
    return list(batches)


def _split(batch: Batch) -> Batch:
    """Return the batch with a job for each of its requests."""
    return [
        received._replace(job=replace(received.job, requests={request: size}))
        for received in batch
        for request, size in received.job.requests.items()
    ]


def _log_fields(batch: Batch) -> dict[str, object]:
    requests = sorted({request for received in batch for request in received.job.requests})
    shard = batch[0].job.target.shard
    return {
        "tenant": batch[0].job.target.tenant or "",
        "messageIds": requests,
        "shard": shard.number,
        "tries": batch[0].receives,
    }
