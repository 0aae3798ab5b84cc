"""Frames to `@connections`, as many at a time as each endpoint takes, and what each answer means.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-how-to-call-websocket-api-connections.html
"""

import heapq
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count

from chalicelib.delivery.congestion import SILENT_SECONDS, UNREACHABLE_SECONDS, EndpointQueue, Task
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.http import Ended, Origin, Transport, verifying_context
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.delivery.sigv4 import RequestSigner
from chalicelib.errors import HeraldError, Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.aws import Credentials
from chalicelib.store.items import Recipient

TRIES = 4
TRIES_THROTTLED = 8  # the endpoint lives, and asks for patience
BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 2.0
OVERTIME_SECONDS = 1.0  # after the deadline, to read who else should have been reached
FIRST_CONNECTIONS = 32  # opened without ado; more only for a queue that is worth the handshakes
QUEUE_FOR_A_CONNECTION = 2  # handshakes of 0.5 ms, requests of 0.02
MAX_PENDING = 2048  # recipients in memory
MAX_PENDING_BESIDE_A_SILENT_ENDPOINT = 50_000
READERS = 8

SUCCESSES = frozenset({200, 204})  # 204 for a DELETE
TRANSIENT_STATUSES = frozenset({408, 429, *range(500, 600)})
OUR_FAULTS = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignatureException",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    }
)
"""Refusals of our credentials: they say nothing of the connection, which must not pay for them."""

REGION = re.compile(r"\.execute-api\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?$")

logger = logging.getLogger("herald.delivery")


class Sender:
    """Sends frames; keeps its connections to API Gateway from one invocation to the next."""

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        *,
        region: str,
        endpoint: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`region` is for endpoints whose name has none; `endpoint` overrides every recipient's.

        `credentials` may raise Unavailable; `now` is the clock of signatures, in epoch seconds.
        """
        self._now = now
        self._credentials = credentials
        self._region = region
        self._endpoint = endpoint
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read-ahead")
        self._idle: list[_Engine] = []

    def deliver(self, pages: Iterable[Sequence[Parcel]], deadline: float) -> Iterator[Outcome]:
        """Send every parcel of every page; one recipient's failure is its own.

        A recipient's frames go out in order, and none follows one that failed. The next page is
        read, in another thread, while this one is sent, and outcomes come as they are known, so
        that nothing piles up. `deadline` is in `time.monotonic` seconds: what is not delivered by
        then is stale. An error of reading is raised when all that was read before has its outcome.
        """
        try:
            engine = self._idle.pop()
        except IndexError:
            engine = _Engine(self._lane, self._endpoint)
        try:
            yield from engine.run(_ReadAhead(pages, self._readers, engine.wake), deadline)
        finally:
            engine.rest()
            self._idle.append(engine)

    def post(self, connection_id: str, endpoint: str, body: bytes, deadline: float) -> Outcome:
        """Send one frame to one connection."""
        recipient = Recipient(connection_id, "", None, endpoint)
        [outcome] = self.deliver([[Parcel(recipient, (frame_of(body),))]], deadline)
        return outcome

    def close(self) -> None:
        """Close every connection. No delivery may be under way."""
        for engine in self._idle:
            engine.close()
        self._readers.shutdown()

    def _lane(self, endpoint: str) -> EndpointQueue:
        origin = Origin(endpoint)
        named = REGION.search(origin.host)
        region = named[1] if named else self._region
        return EndpointQueue(origin, RequestSigner(endpoint, region, self._credentials, self._now))


class _Engine:
    """What one thread delivers with: connections, and a lane for each endpoint."""

    def __init__(self, lane_for: Callable[[str], EndpointQueue], endpoint: str | None) -> None:
        self._lane_for = lane_for
        self._endpoint = endpoint
        self._lanes: dict[str, EndpointQueue] = {}
        self._transport: Transport[Task] = Transport(verifying_context)
        self._retries: list[tuple[float, int, Task]] = []
        self._numbers = count()  # so that the heap never compares tasks
        self.wake = self._transport.wake

    def run(self, source: "_ReadAhead", deadline: float) -> Iterator[Outcome]:
        """Deliver what `source` has."""
        for lane in self._lanes.values():
            self._transport.freshen(lane.origin)
        while True:
            now = time.monotonic()
            if now >= deadline:
                yield from self._run_out_of_time(source, deadline)
                break
            self._take_in(source, now)
            self._requeue(now)
            for lane in self._lanes.values():
                yield from self._send(lane, now)
            if source.ended and not self._pending():
                break
            yield from self._hear(self._next_due(deadline) - now)
        if source.error is not None:
            raise source.error

    def rest(self) -> None:
        """Forget what is unfinished; keep the connections."""
        self._transport.abandon()
        self._retries.clear()
        for lane in self._lanes.values():
            lane.reset()

    def close(self) -> None:
        """Close every connection."""
        self._transport.close([lane.origin for lane in self._lanes.values()])

    def _pending(self) -> int:
        return sum(lane.pending for lane in self._lanes.values())

    def _next_due(self, deadline: float) -> float:
        retry = self._retries[0][0] if self._retries else deadline
        return min(deadline, retry, self._transport.next_due())

    def _take_in(self, source: "_ReadAhead", now: float) -> None:
        """Fetch pages while there is room. What a silent endpoint holds up takes no room."""
        silent = any(lane.is_silent(now, SILENT_SECONDS) for lane in self._lanes.values())
        room = MAX_PENDING_BESIDE_A_SILENT_ENDPOINT if silent else MAX_PENDING
        while self._pending() < room and (page := source.take()) is not None:
            for parcel in page:
                endpoint = self._endpoint or parcel.recipient.endpoint
                if endpoint not in self._lanes:
                    self._lanes[endpoint] = self._lane_for(endpoint)
                self._lanes[endpoint].add(parcel)

    def _requeue(self, now: float) -> None:
        while self._retries and self._retries[0][0] <= now:
            task = heapq.heappop(self._retries)[2]
            task.lane.queue.appendleft(task)

    def _send(self, lane: EndpointQueue, now: float) -> Iterator[Outcome]:
        """Give an endpoint as much as it takes; the outcomes of what can't be signed."""
        while lane.queue and lane.in_flight < lane.window.size and self._may_use_another(lane):
            task = lane.queue.popleft()
            frame = task.parcel.frames[task.position]
            connection_id = task.parcel.recipient.connection_id
            try:
                request = lane.signer.request(frame.method, connection_id, frame.body, frame.digest)
            except Unavailable:
                yield from self._finish(task, Result.STALE, "no_credentials")
                continue
            lane.in_flight += 1
            task.sent_at = now
            self._transport.start(lane.origin, task, request)

    @staticmethod
    def _may_use_another(lane: EndpointQueue) -> bool:
        return (
            bool(lane.origin.idle)
            or lane.in_flight < FIRST_CONNECTIONS
            or len(lane.queue) > lane.in_flight * QUEUE_FOR_A_CONNECTION
        )

    def _hear(self, seconds: float) -> list[Outcome]:
        """Wait at most so long for answers. All that are there count before any endpoint is given
        up: whoever takes our outcomes may have taken their time."""
        outcomes: list[Outcome] = []
        for ended in self._transport.poll(seconds):
            outcomes += self._after(ended)
        now = time.monotonic()
        for lane in self._lanes.values():
            while lane.queue and lane.is_silent(now, UNREACHABLE_SECONDS):
                task = lane.queue.popleft()
                outcomes += self._finish(task, Result.STALE, task.reason or "unreachable")
        return outcomes

    def _after(self, ended: Ended[Task]) -> Sequence[Outcome]:
        """What an answer means, or that none came."""
        task, lane = ended.job, ended.job.lane
        lane.in_flight -= 1
        if ended.lost:
            lane.queue.appendleft(task)
            return ()
        task.tries += 1
        if ended.status:
            lane.heard_at = time.monotonic()
        if ended.status in SUCCESSES:
            lane.window.succeeded()
            return self._delivered(task)
        if ended.status == 410:
            return self._finish(task, Result.GONE, "gone")
        if ended.status and not _is_transient(ended):
            return self._finish(task, Result.REJECTED, f"http_{ended.status}")
        if ended.status == 429:
            lane.window.throttled(task.sent_at, lane.heard_at)
        return self._try_again(task, ended)

    def _delivered(self, task: Task) -> Sequence[Outcome]:
        parcel = task.parcel
        outcome = Outcome(
            parcel.recipient, parcel.frames[task.position], Result.DELIVERED, "", task.tries
        )
        task.position += 1
        if task.position == len(parcel.frames):
            task.lane.pending -= 1
        else:
            task.tries, task.reason = 0, ""
            task.lane.queue.appendleft(task)
        return (outcome,)

    def _try_again(self, task: Task, ended: Ended[Task]) -> Sequence[Outcome]:
        """Later, at a random moment: those who failed together shall not come back together.

        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        task.reason = _reason(ended)
        if task.tries >= (TRIES_THROTTLED if ended.status == 429 else TRIES):
            return self._finish(task, Result.STALE, task.reason)
        longest = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**task.tries)
        due = time.monotonic() + random.uniform(0, longest)
        heapq.heappush(self._retries, (due, next(self._numbers), task))
        return ()

    def _finish(self, task: Task, result: Result, reason: str) -> Sequence[Outcome]:
        """End a task. A later frame would come out of order: it shares the fate of this one."""
        task.lane.pending -= 1
        recipient, frames = task.parcel
        tried, *others = frames[task.position :]
        return [
            Outcome(recipient, tried, result, reason, task.tries),
            *(Outcome(recipient, frame, result, reason, 0) for frame in others),
        ]

    def _run_out_of_time(self, source: "_ReadAhead", deadline: float) -> Iterator[Outcome]:
        """Name whoever was not reached, as far as they can be read in a moment."""
        unfinished = self._transport.abandon()
        unfinished += (task for _, _, task in self._retries)
        for lane in self._lanes.values():
            unfinished += lane.queue
        for task in unfinished:
            yield from self._finish(task, Result.STALE, task.reason or "deadline")
        while (page := source.wait(deadline + OVERTIME_SECONDS)) is not None:
            for recipient, frames in page:
                for frame in frames:
                    yield Outcome(recipient, frame, Result.STALE, "deadline", 0)


class _ReadAhead:
    """Reads the next page, in another thread, while the last one is in use."""

    def __init__(
        self,
        pages: Iterable[Sequence[Parcel]],
        readers: ThreadPoolExecutor,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when a page is there."""
        self._pages = iter(pages)
        self._readers = readers
        self._wake = wake
        self.ended = False
        self.error: HeraldError | None = None
        self._next = self._read()

    def _read(self) -> "Future[Sequence[Parcel] | None]":
        future = self._readers.submit(next, self._pages, None)
        future.add_done_callback(lambda _: self._wake())
        return future

    def take(self) -> Sequence[Parcel] | None:
        """The next page, if it is there. An error ends the pages, and is kept."""
        if self.ended or not self._next.done():
            return None
        try:
            page = self._next.result()
        except HeraldError as error:
            page, self.error = None, error
        if page is None:
            self.ended = True
        else:
            self._next = self._read()
        return page

    def wait(self, until: float) -> Sequence[Parcel] | None:
        """The next page, waited for; None at the end, and when it is not there in time."""
        wait([self._next], timeout=max(0.0, until - time.monotonic()))
        page = self.take()
        if page is None and not self.ended:
            self.error = Unavailable("the audience could not be read to its end in time")
        return page


def _is_transient(ended: Ended[Task]) -> bool:
    return ended.status in TRANSIENT_STATUSES or ended.error_type in OUR_FAULTS


def _reason(ended: Ended[Task]) -> str:
    if ended.status == 429:
        return "throttled"
    if ended.error_type in OUR_FAULTS:
        return "not_authorized"
    return f"http_{ended.status}" if ended.status else ended.failure
