"""One message to many: the audience in parts, through the queue, a worker for each part.

A request becomes jobs, one for each shard of its audience. A worker takes a job up for a slice of
time, notes how far it came, and puts the rest back to the end of the queue: there, whoever came
meanwhile is before it. Jobs that wait for the same recipients are done together.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from chalicelib.delivery.broadcast import Broadcaster
from chalicelib.delivery.frames import Framer
from chalicelib.errors import HeraldError, Unavailable
from chalicelib.fanout.progress import Claimed, Progress, ShardPosition, ShardTaken
from chalicelib.fanout.queue import MAX_RECEIVES, Job, Queue, ReceivedJob, Route
from chalicelib.fanout.rate import FanoutRateLimiter
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.reports import Report
from chalicelib.runtime.logs import correlated
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.audience import PAGE_ITEMS, Audiences, Page

SLICE_SECONDS = 1.0  # of an invocation's reading: so long a job waits where all workers work
LEAST_SECONDS = 3.0  # less time is not enough to begin, and what the last recipients may take
TOGETHER_BYTES = 16 * 1024 * 1024  # of messages: what a worker holds in memory
TOGETHER_REQUESTS = 100

logger = logging.getLogger("herald.fanout")


Group = list[tuple[ReceivedJob, Job]]
"""Jobs of one route, as they came."""

Rests = defaultdict[str, dict[str, int]]
"""Requests by the position from which they go on; with each, its size."""


class _Held(NamedTuple):
    """A request that a job may deliver."""

    place: ShardPosition
    job: Job
    claimed: Claimed


class Worker:
    """Does the jobs that SQS hands out."""

    def __init__(
        self,
        *,
        audiences: Audiences,
        broadcaster: Broadcaster,
        progress: Progress,
        queue: Queue,
        rate_limiter: FanoutRateLimiter,
        encryption: Encryption,
        frame_bytes: int,
        now: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        """`frame_bytes`: see `Framer`. `now` is the clock, in epoch milliseconds."""
        self._audiences = audiences
        self._broadcaster = broadcaster
        self._progress = progress
        self._queue = queue
        self._rate_limiter = rate_limiter
        self._encryption = encryption
        self._frame_bytes = frame_bytes
        self._now = now
        self._metrics = metrics

    def work(self, records: Iterable[Mapping[str, Any]], deadline: float) -> list[str]:
        """Do a batch of jobs, the records of a Lambda event; the ids of those that have to come
        again. `deadline` is in `time.monotonic` seconds."""
        failed: list[str] = []
        jobs: list[tuple[ReceivedJob, Job]] = []
        for record in map(ReceivedJob.from_record, records):
            try:
                jobs.append((record, Job.from_json(record.body)))
            except ValueError as error:
                logger.error("in the queue is %s", error, extra={"sqsMessageId": record.message_id})
                failed.append(record.message_id)
        groups = _together(jobs)
        for group in groups:
            failed += self._try(group, SLICE_SECONDS / len(groups), deadline)
        return failed

    def _try(self, group: Group, seconds: float, deadline: float) -> list[str]:
        """Do a group's jobs; the ids of those that failed. Where requests fail together, each is
        tried alone: one that never succeeds shall not take the others with it."""
        try:
            self._work(group, min(deadline, time.monotonic() + seconds), deadline)
        except Unavailable as error:
            logger.error("jobs are left for later: %s", error.detail, extra=_about(group))
        except Exception as error:
            alone = [
                (record, replace(job, requests={request: size}))
                for record, job in group
                for request, size in job.requests.items()
            ]
            if len(alone) > 1:
                each = [self._try([entry], seconds / len(alone), deadline) for entry in alone]
                return [message_id for failed in each for message_id in failed]
            if isinstance(error, HeraldError):
                logger.error("a job failed: %s", error.detail, extra=_about(group))
            else:
                logger.exception("a job failed", extra=_about(group))
        else:
            return []
        return [record.message_id for record, _ in group]

    def _work(self, group: Group, end: float, deadline: float) -> None:
        """Do what jobs of one route have in common: read until `end`, and deliver that."""
        if time.monotonic() > deadline - LEAST_SECONDS:
            self._queue.put([job for _, job in group])  # others took the time
            return
        route = group[0][1].route
        rests: Rests = defaultdict(dict)
        held = self._claim(group, rests)
        if held:
            ids = {one.claimed.correlation_id or "" for one in held.values()}
            with correlated(" ".join(sorted(ids)).strip() or None):
                self._do(route, held, rests, end, deadline)
        self._queue.put(
            [
                Job(requests, replace(route, shard=replace(route.shard, after=rest)))
                for rest, requests in rests.items()
            ]
        )

    def _do(
        self, route: Route, held: Mapping[str, _Held], rests: Rests, end: float, deadline: float
    ) -> None:
        """Deliver what is held, and note it. What is left of it is added to `rests`."""
        position, reports = self._deliver(route, held, end, deadline)
        for request, (place, job, (messages, _)) in held.items():
            own = [reports[message.id] for message in messages]
            rest = self._progress.advance(place, job.id, position, own)
            if rest is not None:
                rests[rest][request] = job.requests[request]
            else:
                self._metrics.value("FanoutDuration", self._now() - messages[0].timestamp)

    def _claim(self, group: Group, rests: Rests) -> dict[str, _Held]:
        """What is to be delivered, by request. What was delivered before, and whose rest may not be
        in the queue yet, is added to `rests`."""
        held: dict[str, _Held] = {}
        for record, job in group:
            last_try = self._now() if record.receives >= MAX_RECEIVES else None
            for request in job.requests:
                place = ShardPosition(request, job.route.shard.number, job.route.shard.after)
                try:
                    claimed = self._progress.claim(place, job.id, last_try)
                    held[request] = _Held(place, job, claimed)
                except ShardTaken as taken:
                    if taken.rest is not None:
                        rests[taken.rest][request] = job.requests[request]
        return held

    def _deliver(
        self, route: Route, held: Mapping[str, _Held], end: float, deadline: float
    ) -> tuple[str | None, dict[str, Report]]:
        """How far it came, and what became of each message."""
        messages = sorted(
            (message for one in held.values() for message in one.claimed.messages),
            key=lambda message: message.id,  # in which the senders' order is
        )
        framer = Framer(messages, self._frame_bytes, route.tenant, self._encryption)
        pages = _Slice(
            self._audiences.pages(
                [message.audience for message in messages],
                route.tenant,
                route.shard,
                self._rate_limiter.page_items(PAGE_ITEMS),
            ),
            end,
        )
        pace = partial(
            self._rate_limiter.throttle, tenant=route.tenant, end=deadline - LEAST_SECONDS
        )
        reports = self._broadcaster.send(framer, pages, deadline, pace)
        return pages.position, {report.id: report for report in reports}


class _Slice:
    """Pages until `end`, one at least; what was read of them is to be delivered."""

    def __init__(self, pages: Iterable[Page], end: float) -> None:
        self._pages = pages
        self._end = end
        self.position: str | None = None

    def __iter__(self) -> Iterator[Page]:
        for page in self._pages:
            self.position = page.position
            yield page
            if time.monotonic() >= self._end:
                return
        self.position = None


def _together(jobs: Iterable[tuple[ReceivedJob, Job]]) -> list[Group]:
    """The jobs in groups that read the same, none of which holds too much at once."""
    groups: list[Group] = []
    open_groups: dict[Route, tuple[Group, dict[str, int]]] = {}
    for record, job in jobs:
        group, requests = open_groups.get(job.route, ([], {}))
        both = {**requests, **job.requests}
        if not group or len(both) > TOGETHER_REQUESTS or sum(both.values()) > TOGETHER_BYTES:
            group, both = [], dict(job.requests)
            groups.append(group)
        group.append((record, job))
        open_groups[job.route] = group, both
    return groups


def _about(group: Group) -> dict[str, object]:
    requests = sorted({request for _, job in group for request in job.requests})
    shard = group[0][1].route.shard
    return {"messageIds": requests, "shard": shard.number, "tries": group[0][0].receives}
