"""A simulated delivery: the real sender over models of everything around it, from one seed.

The models permute what the network, the readers of pages and the consumer of outcomes can do. At
each wait and at the end of each delivery, `Delivery` checks what a sender promises:

- Each frame has exactly one outcome, also if pages fail, come late, or the deadline passes.
- The sender never waits while there is work that it could do, nor beyond the moment at which there
  will be some. It never spins.
- Nothing is sent after the deadline, and a recipient's frames are sent in order.
- An outcome is true: what is `delivered` was answered with 200, and what is `gone` with 410.
- Nothing is left over: no task in flight or pending, and no open socket except idle ones.
"""

from collections import Counter
from collections.abc import Iterator
from math import inf
from random import Random
from typing import Any

from chalicelib.delivery.congestion import START_WINDOW, EndpointTimeouts
from chalicelib.delivery.frames import Frame
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.delivery.read_ahead import ReadAhead
from chalicelib.delivery.retries import RetryPolicy
from chalicelib.delivery.sender import PendingLimits, SenderLimits, SendLoop
from chalicelib.delivery.sigv4 import SignerFactory
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.aws import Credentials
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient
from tests.simulation.network import Network
from tests.simulation.timeline import SimulatedExecutor, Timeline

DELIVERIES = 3  # of one run; the later ones find kept-alive connections
MAX_WAITS = 5000
ENOUGH = 1e-6  # seconds; sums of floats differ by less
DEADLINES = (0.0, 0.05, 0.5, 3.0, 3.0, 12.0, 30.0)
PAUSES = (0.0,) * 12 + (0.02, 0.6, 6.0)
PAGE_DELAYS = (0.0, 0.0, 0.01, 0.3, 2.0)
CREDENTIAL_DELAYS = (0.0,) * 6 + (0.6,)
HOSTS = ("good", "good", "other", "silent", "refusing")
UNREACHABLE = 5.0
PENDING = PendingLimits(usual=3, while_silent=7)


class PageFailed(Exception):
    """A bug in whatever yields the pages."""


class Run:
    """One sender, and some deliveries one after the other."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.timeline = Timeline()
        self.network = Network(self.timeline, self.random)
        self.has_credentials = True
        self.deadline = Deadline(self.timeline.now)
        limits = SenderLimits(
            endpoint=EndpointTimeouts(silent=0.5, unreachable=UNREACHABLE),
            retries=RetryPolicy(jitter=self.random.uniform),
            pending=PENDING,
        )
        signers = SignerFactory(self._credentials, region="r", now=self.timeline.monotonic)
        self.loop = SendLoop(signers, None, limits, self.network.system())
        self.limits = limits

    def run(self) -> set[str]:
        """Run the deliveries. Returns what happened; raises AssertionError for a broken promise."""
        hosts = self.random.sample(HOSTS, self.random.randint(1, 2))
        for number in range(DELIVERIES):
            Delivery(self, number, hosts).run()
            self.timeline.advance(self.timeline.now + self.random.choice((0.0, 0.1, 70.0)))
        self.loop.close()
        assert self.network.open_sockets() == 0
        return self.network.happened

    def _credentials(self) -> Credentials:
        """Return the credentials, which may take a while to refresh."""
        ready_at = self.timeline.now + self.random.choice(CREDENTIAL_DELAYS)
        if ready_at < self.deadline.at:  # what is being sent meanwhile must be sent in time
            self.timeline.advance(ready_at)
        if not self.has_credentials:
            raise Unavailable("there are no credentials")
        return Credentials("AK", "secret")


class Delivery:
    """One delivery, and the checks of it."""

    def __init__(self, run: Run, number: int, hosts: list[str]) -> None:
        self._timeline, self._network = run.timeline, run.network
        self._random = run.random
        self._loop: Any = run.loop
        self._run = run
        self._pages = self._draw_pages(number, hosts)
        self._fails = self._random.choice((None, None, None, Unavailable("storage"), PageFailed()))
        self._read: list[list[Parcel]] = []
        self._outcomes: list[Outcome] = []
        self._deadline = Deadline(self._timeline.now + self._random.choice(DEADLINES))
        run.deadline = self._deadline
        self._began = self._timeline.now
        self._paused = 0.0
        self._waits = 0
        self._source: Any = None

    def _draw_pages(self, number: int, hosts: list[str]) -> list[list[Parcel]]:
        """Return pages of a few recipients, or rarely of more than may be in flight."""
        draw = self._random.randint
        most = self._random.choices((4, 2 * START_WINDOW), (50, 1))[0]
        pages = []
        for page in range(draw(0, 3)):
            parcels = []
            for index in range(draw(0, most)):
                connection_id = f"c{number}-{page}-{index}"
                endpoint = f"http://{self._random.choice(hosts)}/prod"
                frames = (_frame(connection_id, order) for order in range(draw(1, 3)))
                parcels.append(
                    Parcel(Recipient(connection_id, "bob", None, endpoint), tuple(frames))
                )
            pages.append(parcels)
        return pages

    def run(self) -> None:
        self._network.on_wait, self._network.on_send = self._check_wait, self._check_send
        readers = SimulatedExecutor(self._timeline, self._random, PAGE_DELAYS)
        self._source = ReadAhead(self._pages_of_reader(), readers, self._loop.wake)
        abandoned_after = self._random.choice((None, None, None, 1, 3))
        error = self._consume(abandoned_after)
        abandoned = error is None and len(self._outcomes) == abandoned_after
        if not abandoned:
            self._check_end(error)
        self._loop.reset()
        self._check_sent()
        self._check_leftovers()

    def _pages_of_reader(self) -> Iterator[list[Parcel]]:
        fails_at = self._random.randint(0, len(self._pages))
        for index, page in enumerate(self._pages):
            if self._fails and index == fails_at:
                break
            self._read.append(page)
            yield page
        if self._fails:
            raise self._fails

    def _consume(self, abandoned_after: int | None) -> Exception | None:
        """Take the outcomes, with pauses. Returns the error that ends them, if any."""
        try:
            for outcome in self._loop.run(self._source, self._deadline):
                self._outcomes.append(outcome)
                self._network.happened.add(outcome.reason)
                if outcome.reason == "unreachable":
                    waited = self._timeline.now - self._began - self._paused
                    assert waited + ENOUGH >= UNREACHABLE, "it gives an endpoint up too early"
                if len(self._outcomes) == abandoned_after:
                    self._network.happened.add("abandoned")
                    break
                pause = self._random.choice(PAUSES)
                self._paused += pause
                self._timeline.advance(self._timeline.now + pause)
                self._run.has_credentials = self._random.random() < 0.95
        except (Unavailable, PageFailed) as error:
            self._network.happened.add(str(error))
            return error
        return None

    # --- Checks while it runs

    def _check_send(self) -> None:
        assert self._timeline.now <= self._deadline.at + ENOUGH, "it sends after the deadline"

    def _check_wait(self, until: float) -> None:
        """Check that there is no work to do now, and that there won't be any before `until`."""
        self._waits += 1
        assert self._waits < MAX_WAITS, "it spins"
        loop, now = self._loop, self._timeline.now
        assert not loop._transport._completions, "it waits while there are completions"
        until -= ENOUGH
        if now >= self._deadline.at:
            assert not self._page_is_there(), "it waits while a page is there"
            assert until <= self._deadline.at + self._run.limits.overtime_seconds
            return
        queues = loop._queues.values()
        assert not any(queue.may_send() for queue in queues), "it waits while it could send"
        retries = [entry[0] for entry in loop._retries._heap]
        assert until <= min(retries, default=inf), "it waits while a retry is due"
        requests = (*loop._transport._opening, *loop._transport._busy)
        timeouts = [request.timeout_at for request in requests]
        assert until <= min(timeouts, default=inf), "it waits while a request has timed out"
        assert until <= self._deadline.at, "it waits beyond the deadline"
        pending = sum(queue.pending for queue in queues)
        if self._page_is_there():
            assert pending >= PENDING.usual, "it waits while there is room for a page"
        for queue in queues:
            silent = queue.last_response_at + queue.timeouts.silent
            if self._page_is_there() and queue.pending and pending < PENDING.while_silent:
                assert until <= silent, "it waits while a silent endpoint makes room"
            if queue.ready:
                unreachable = queue.last_response_at + queue.timeouts.unreachable
                assert until <= unreachable, "it waits while an endpoint is unreachable"

    def _page_is_there(self) -> bool:
        return not self._source.ended and self._source._next.done()

    # --- Checks at the end

    def _check_end(self, error: Exception | None) -> None:
        overtime = self._deadline.at + self._run.limits.overtime_seconds
        assert self._timeline.now <= overtime + self._paused + ENOUGH, "it ends too late"
        if error is None:
            assert self._fails is None, "an error of the pages is lost"
            assert self._read == self._pages, "pages are missing"
        elif error is not self._fails:
            assert self._timeline.now + ENOUGH >= overtime, "it gives up too early"
        frames = Counter(
            (parcel.recipient.connection_id, frame.body)
            for page in self._read
            for parcel in page
            for frame in parcel.frames
        )
        found = Counter((one.recipient.connection_id, one.frame.body) for one in self._outcomes)
        assert found == frames, "not each frame has one outcome"
        queues = self._loop._queues.values()
        left = [(queue.pending, queue.in_flight, len(queue.ready)) for queue in queues]
        assert not any(map(any, left)), f"tasks are left over: {left}"

    def _check_sent(self) -> None:
        """Check that the outcomes are true, and that frames were sent in order."""
        for outcome in self._outcomes:
            answers = self._network.answers.get(outcome.frame.body, [])
            match outcome.result:
                case Result.DELIVERED:
                    assert 200 in answers, "an outcome is not true"
                case Result.GONE if outcome.tries:
                    assert 410 in answers, "an outcome is not true"
                case Result.REJECTED if outcome.tries:
                    assert int(outcome.reason.removeprefix("http_")) in answers
        delivered = {one.frame.body for one in self._outcomes if one.result is Result.DELIVERED}
        for parcel in (parcel for page in self._read for parcel in page):
            bodies = [frame.body for frame in parcel.frames]
            sent = [body for _, body in self._network.requests if body in bodies]
            assert sent == sorted(sent), "frames are sent out of order"
            taken = [body in delivered for body in bodies]
            assert taken == sorted(taken, reverse=True), "a frame follows one that failed"

    def _check_leftovers(self) -> None:
        transport = self._loop._transport
        idle = sum(len(queue.origin.idle) for queue in self._loop._queues.values())
        assert not transport._opening
        assert not transport._busy
        assert not transport._completions
        assert self._loop._retries.take_all() == []
        assert self._network.open_sockets() == idle, "sockets are left open"


def _frame(connection_id: str, order: int) -> Frame:
    return Frame(f"{connection_id}/{order}".encode(), "0" * 64)


def simulate(seed: int) -> set[str]:
    """Simulate deliveries. Returns what happened; raises AssertionError for a broken promise."""
    return Run(seed).run()
