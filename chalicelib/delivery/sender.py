"""Sends frames to `@connections`, at the rate that each endpoint takes, and judges each response.

https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-how-to-call-websocket-api-connections.html
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from chalicelib.delivery.congestion import EndpointQueue, EndpointTimeouts, Task
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.http import Completion, HttpTimeouts, Transport, create_trusted_context
from chalicelib.delivery.http_connection import Origin
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.delivery.read_ahead import ReadAhead
from chalicelib.delivery.retries import RetryPolicy, RetryQueue
from chalicelib.delivery.sigv4 import SignerFactory
from chalicelib.delivery.system import SYSTEM, System
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.aws import Credentials
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient

READERS = 8

SUCCESSES = frozenset({200, 204})  # 204 answers a DELETE
TRANSIENT_STATUSES = frozenset({408, 429, *range(500, 600)})
CREDENTIAL_ERRORS = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignatureException",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    }
)
"""Errors about our credentials. They say nothing about the connection, so it is not removed."""


class PendingLimits(NamedTuple):
    """The number of recipients that may be in memory."""

    usual: int = 2048
    while_silent: int = 50_000
    """While an endpoint is silent, so that others are not held up by it."""


class SenderLimits(NamedTuple):
    """The time-outs and bounds of a sender.

    Limits are named tuples: creating a dataclass takes 0.6 ms of each cold start, a tuple 0.1 ms.
    """

    http: HttpTimeouts = HttpTimeouts()
    endpoint: EndpointTimeouts = EndpointTimeouts()
    retries: RetryPolicy = RetryPolicy()
    pending: PendingLimits = PendingLimits()
    overtime_seconds: float = 1.0
    """For reading, after the deadline, which other recipients should have been reached."""


DEFAULT_LIMITS = SenderLimits()


class Sender:
    """Sends frames; keeps its connections to API Gateway from one invocation to the next."""

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        *,
        region: str,
        endpoint: str | None = None,
        now: Callable[[], float] = time.time,
        limits: SenderLimits = DEFAULT_LIMITS,
        system: System = SYSTEM,
    ) -> None:
        """Create a sender without connections.

        Args:
            credentials: Returns the credentials to sign with; may raise Unavailable.
            region: Used when the host name of an endpoint contains no region.
            endpoint: Replaces the endpoint of every recipient.
            now: The clock of the signatures, in epoch seconds.
        """
        self._signers = SignerFactory(credentials, region=region, now=now)
        self._endpoint = endpoint
        self._limits = limits
        self._system = system
        # Not the pool of the writes: a page would wait there behind thousands of outcomes, and the
        # sending with it. Threads start when needed, so it costs nothing until then.
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read-ahead")
        self._idle_loops: list[SendLoop] = []

    def deliver(self, pages: Iterable[Sequence[Parcel]], deadline: Deadline) -> Iterator[Outcome]:
        """Send every parcel of every page; yield an outcome for each frame as soon as it is known.

        A recipient's frames are sent in order, until one fails. Failures of one recipient do not
        affect others. The next page is read in another thread meanwhile.

        Args:
            deadline: A frame that is not delivered by then is stale.

        Raises:
            Exception: Reading failed. Everything that was read before has its outcome by then.
        """
        try:
            loop = self._idle_loops.pop()
        except IndexError:
            loop = SendLoop(self._signers, self._endpoint, self._limits, self._system)
        try:
            yield from loop.run(ReadAhead(pages, self._readers, loop.wake), deadline)
        finally:
            loop.reset()
            self._idle_loops.append(loop)

    def post(self, connection_id: str, endpoint: str, body: bytes, deadline: Deadline) -> Outcome:
        """Send one frame to one connection; return its outcome."""
        recipient = Recipient(connection_id, "", None, endpoint)
        [outcome] = self.deliver([[Parcel(recipient, (frame_of(body),))]], deadline)
        return outcome

    def close(self) -> None:
        """Close every connection. No delivery may be under way."""
        for loop in self._idle_loops:
            loop.close()
        self._readers.shutdown()


class SendLoop:
    """The event loop of one delivery at a time: its connections, and a queue for each endpoint."""

    def __init__(
        self,
        signers: SignerFactory,
        endpoint: str | None,
        limits: SenderLimits,
        system: System = SYSTEM,
    ) -> None:
        self._signers = signers
        self._endpoint = endpoint
        self._limits = limits
        self._monotonic = system.monotonic
        self._queues: dict[str, EndpointQueue] = {}
        self._transport: Transport[Task] = Transport(
            create_trusted_context, timeouts=limits.http, system=system
        )
        self._retries = RetryQueue(limits.retries)
        self.wake = self._transport.wake

    def run(self, source: ReadAhead, deadline: Deadline) -> Iterator[Outcome]:
        """Deliver the pages of `source`; see `Sender.deliver`."""
        for queue in self._queues.values():
            self._transport.close_expired(queue.origin)
        while True:
            now = self._monotonic()
            if now >= deadline.at:
                yield from self._report_unsent(source, deadline)
                break
            self._fill_queues(source, now)
            self._requeue_retries(now)
            unsigned: list[Outcome] = []
            for queue in self._queues.values():
                unsigned += self._send(queue, now)
            if unsigned:
                yield from self._hand_over(unsigned)
            elif source.ended and not self._pending():
                break
            else:
                yield from self._hand_over(self._receive(self._next_event(deadline, now)))
        if source.error is not None:
            raise source.error

    def reset(self) -> None:
        """Drop the unfinished tasks; keep the connections."""
        self._transport.cancel_all()
        self._retries.take_all()
        for queue in self._queues.values():
            queue.reset()

    def close(self) -> None:
        """Close every connection."""
        self._transport.close([queue.origin for queue in self._queues.values()])

    def _pending(self) -> int:
        return sum(queue.pending for queue in self._queues.values())

    def _next_event(self, deadline: Deadline, now: float) -> float:
        """Return when there will be work again. `now` is when the queues were filled."""
        changes = (queue.next_change(now) for queue in self._queues.values())
        return min(deadline.at, self._retries.next_due(), self._transport.next_timeout(), *changes)

    def _hand_over(self, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        """Yield outcomes. Do not count our caller's time as an endpoint's silence."""
        began = self._monotonic()
        yield from outcomes
        paused = self._monotonic() - began
        for queue in self._queues.values():
            queue.last_response_at += paused

    # --- Sending

    def _fill_queues(self, source: ReadAhead, now: float) -> None:
        """Take pages while there is room, of which a silent endpoint may occupy more."""
        silent = any(queue.is_silent(now) for queue in self._queues.values())
        limits = self._limits.pending
        room = limits.while_silent if silent else limits.usual
        queues = self._queues
        while self._pending() < room and (page := source.take()) is not None:
            for parcel in page:
                endpoint = self._endpoint or parcel.recipient.endpoint
                if endpoint not in queues:
                    queues[endpoint] = self._create_queue(endpoint)
                queues[endpoint].add(parcel, now)

    def _create_queue(self, endpoint: str) -> EndpointQueue:
        return EndpointQueue(
            Origin(endpoint), self._signers.signer(endpoint), self._limits.endpoint
        )

    def _requeue_retries(self, now: float) -> None:
        for task in self._retries.take_due(now):
            task.queue.ready.appendleft(task)

    def _send(self, queue: EndpointQueue, now: float) -> list[Outcome]:
        """Send as much as an endpoint takes; return the outcomes of what cannot be signed."""
        unsigned: list[Outcome] = []
        while queue.may_send():
            task = queue.ready.popleft()
            frame = task.parcel.frames[task.position]
            connection_id = task.parcel.recipient.connection_id
            try:
                request = queue.signer.request(
                    frame.method, connection_id, frame.body, frame.digest
                )
            except Unavailable:
                unsigned += self._fail(task, Result.STALE, "no_credentials")
                continue
            queue.in_flight += 1
            task.sent_at = now
            self._transport.start(queue.origin, task, request)
        return unsigned

    # --- Receiving

    def _receive(self, until: float) -> list[Outcome]:
        """Wait for responses until a moment on the monotonic clock; return the outcomes."""
        outcomes: list[Outcome] = []
        for completion in self._transport.poll(until - self._monotonic()):
            outcomes += self._on_completion(completion)
        # Only after that, since responses wait here while our caller handles earlier outcomes.
        now = self._monotonic()
        for queue in self._queues.values():
            while queue.ready and queue.is_unreachable(now):
                task = queue.ready.popleft()
                outcomes += self._fail(task, Result.STALE, task.reason or "unreachable")
        return outcomes

    def _on_completion(self, completion: Completion[Task]) -> Sequence[Outcome]:
        """Judge a response or its absence; return the outcomes, or nothing while a retry waits."""
        task, status = completion.task, completion.status
        queue = task.queue
        queue.in_flight -= 1
        if completion.resend:
            queue.ready.appendleft(task)
            return ()
        task.tries += 1
        if status:
            queue.last_response_at = self._monotonic()
        if status in SUCCESSES:
            queue.window.succeeded()
            return self._succeed(task)
        if status == 410:
            return self._fail(task, Result.GONE, "gone")
        if status and not _is_transient(completion):
            return self._fail(task, Result.REJECTED, f"http_{status}")
        if status == 429:
            queue.window.throttled(task.sent_at, queue.last_response_at)
        task.reason = _reason(completion)
        if self._retries.add(task, self._monotonic(), throttled=status == 429):
            return ()
        return self._fail(task, Result.STALE, task.reason)

    def _succeed(self, task: Task) -> Sequence[Outcome]:
        """Go on to a task's next frame, or finish it; return the outcome of this frame."""
        parcel = task.parcel
        outcome = Outcome(
            parcel.recipient, parcel.frames[task.position], Result.DELIVERED, "", task.tries
        )
        task.position += 1
        if task.position == len(parcel.frames):
            task.queue.pending -= 1
        else:
            task.tries, task.reason = 0, ""
            task.queue.ready.appendleft(task)
        return (outcome,)

    def _fail(self, task: Task, result: Result, reason: str) -> Sequence[Outcome]:
        """Finish a task; return the outcomes of this frame and of those after it.

        Later frames get the same result, since sending them would break the order.
        """
        task.queue.pending -= 1
        recipient, frames = task.parcel
        tried, *others = frames[task.position :]
        return [
            Outcome(recipient, tried, result, reason, task.tries),
            *(Outcome(recipient, frame, result, reason, 0) for frame in others),
        ]

    def _report_unsent(self, source: ReadAhead, deadline: Deadline) -> Iterator[Outcome]:
        """Yield a stale outcome for each frame that is not delivered at the deadline.

        The rest of the audience is read for this, as far as it can be in the overtime.
        """
        completions, unfinished = self._transport.cancel_all()
        for task in unfinished:
            task.queue.in_flight -= 1
        for completion in completions:
            yield from self._on_completion(completion)
        unfinished += self._retries.take_all()
        for queue in self._queues.values():
            unfinished += queue.ready
            queue.ready.clear()
        for task in unfinished:
            yield from self._fail(task, Result.STALE, task.reason or "deadline")
        yield from self._report_unread(source, deadline.later(self._limits.overtime_seconds))

    def _report_unread(self, source: ReadAhead, overtime: Deadline) -> Iterator[Outcome]:
        """Read the other pages until `overtime`; yield a stale outcome for each of their frames."""
        while not source.ended:
            page = source.take()
            for recipient, frames in page or ():
                for frame in frames:
                    yield Outcome(recipient, frame, Result.STALE, "deadline", 0)
            if page is None and not source.ended:
                left = overtime.at - self._monotonic()
                if left <= 0:
                    source.give_up()
                else:
                    self._transport.poll(left)


def _is_transient(completion: Completion[Task]) -> bool:
    return completion.status in TRANSIENT_STATUSES or completion.error_type in CREDENTIAL_ERRORS


def _reason(completion: Completion[Task]) -> str:
    if completion.status == 429:
        return "throttled"
    if completion.error_type in CREDENTIAL_ERRORS:
        return "not_authorized"
    return f"http_{completion.status}" if completion.status else completion.failure
