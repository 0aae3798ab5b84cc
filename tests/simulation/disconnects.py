"""Simulated disconnects: the real Disconnector and OutcomeRecorder over models, from one seed.

Removals fail, or are carried out although they fail, or end after the deadline, or never. Sockets
cannot be closed, or are closed although no answer comes, or are in a handshake that ends soon. The
function dies at any request. Whatever happens:

- No connection is removed while its socket is open, unless `@connections` refuses for good.
- What is reported as done, or notified, is done.
- A later call without faults finds everything that is left, and ends it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from random import Random
from typing import Any

from chalicelib.clock import EpochMs
from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import PROBE, frame_of
from chalicelib.delivery.notices import Removed
from chalicelib.delivery.outcomes import OutcomeRecorder, RecordingLimits
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient

NOW = EpochMs(1_700_000_000_000)
YOUNG, OLD = EpochMs(NOW - 1000), EpochMs(NOW - 60_000)
AT_ONCE = Deadline(0.0)
"""A deadline that has passed on the real clock, so that nothing really waits."""

LAST = frame_of(b"last")


class Died(BaseException):
    """The end of the function."""


@dataclass
class Socket:
    """A client's socket. `refuses`: `@connections` answers 403 to everything about it."""

    recipient: Recipient
    state: str = "open"
    refuses: bool = False
    stored: bool = True
    frames: list[bytes] = field(default_factory=list)


class Faults:
    """What goes wrong, by a seed; nothing after `stop`."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self._share = self.random.choice((0.0, 0.1, 0.4))

    def stop(self) -> None:
        self._share = 0.0

    def one_of(self, *faults: str) -> str:
        """Return one of the faults, or an empty string."""
        return self.random.choice(faults) if self.random.random() < self._share else ""


class Run:
    """A few sockets, and one invocation after another that ends some of them."""

    def __init__(self, seed: int) -> None:
        self.faults = Faults(seed)
        self.random = self.faults.random
        self.now = NOW
        self.happened: set[str] = set()
        self.sockets: dict[str, Socket] = {}
        for number in range(self.random.randint(1, 4)):
            connected_at = self.random.choice((YOUNG, OLD, OLD))
            recipient = Recipient(f"c{number}", "bob", None, "https://x", connected_at)
            self.sockets[recipient.connection_id] = self._draw_socket(recipient)
        self.writers = Writers(self)
        store: Any = Store(self)
        delivery: Any = Delivery(self)
        notifier: Any = self
        self.notified: list[str] = []
        self.disconnector = Disconnector(
            connections=store,
            delivery=delivery,
            writers=self.writers,
            now=lambda: self.now,
            handshake_pauses=(0.0, 0.0),
        )
        self.recorder = OutcomeRecorder(
            connections=store,
            delivery=delivery,
            disconnector=self.disconnector,
            notifier=notifier,
            writers=self.writers,
            now=lambda: self.now,
            limits=RecordingLimits(handshake_pauses=(0.0, 0.0)),
        )

    def _draw_socket(self, recipient: Recipient) -> Socket:
        states = ("open", "open", "closed")
        if recipient.connected_at == YOUNG:
            states = ("handshake", "open", "closed")
        return Socket(recipient, self.random.choice(states), self.random.random() < 0.1)

    def run(self) -> set[str]:
        for _ in range(3):
            try:
                self.random.choice((self._disconnect, self._record))()
            except Died:
                self.happened.add("died")
            self.writers.continue_late()
        self.faults.stop()
        self._end_everything()
        return self.happened

    def notify_removed(self, removed: Sequence[Removed], _: Deadline) -> Iterator[Outcome]:
        """Stand in for the notifier."""
        self.notified += [notice.recipient.connection_id for notice in removed]
        return iter(())

    def _chosen(self) -> list[Socket]:
        stored = [socket for socket in self.sockets.values() if socket.stored]
        return self.random.sample(stored, self.random.randint(0, len(stored)))

    def _disconnect(self) -> None:
        chosen = self._chosen()
        try:
            self.disconnector.disconnect([one.recipient for one in chosen], AT_ONCE, LAST)
        except Unavailable as error:
            self.happened.add(error.detail)
        else:
            left = [one for one in chosen if one.stored or is_open(one)]
            assert not left, f"these are not disconnected: {left}"

    def _record(self) -> None:
        """Record the outcomes of a delivery."""
        batch = self.recorder.begin()
        rejected: list[str] = []
        for socket in self._chosen():
            if socket.state in ("handshake", "opening"):
                continue  # how long a delivery waits for it is a trade-off of its own
            result, reason = Result.REJECTED, "http_400"
            if socket.state == "closed":
                result, reason = Result.GONE, "gone"
            elif self.random.random() < 0.3:
                result, reason = Result.STALE, "timeout"
            else:
                rejected.append(socket.recipient.connection_id)
            batch.add(Outcome(socket.recipient, LAST, result, reason, 1))
        self.notified.clear()
        batch.finish(AT_ONCE)
        for connection_id in self.notified:
            assert connection_id in rejected
            assert not is_open(self.sockets[connection_id]), "notified of an open connection"

    def _end_everything(self) -> None:
        """Disconnect all that is stored, once handshakes have ended."""
        self.now = EpochMs(NOW + 31_000)
        for socket in self.sockets.values():
            if socket.state in ("handshake", "opening"):
                socket.state = "open"
        stored = [one.recipient for one in self.sockets.values() if one.stored]
        self.disconnector.disconnect(stored, AT_ONCE, LAST)
        for socket in self.sockets.values():
            assert not socket.stored, "a connection is left over"
            assert not is_open(socket), "an open socket is forgotten"


def is_open(socket: Socket) -> bool:
    """Return whether a socket is open, or will be, and can be closed."""
    return socket.state != "closed" and not socket.refuses


class Store:
    """Stands in for Connections."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def remove(self, recipient: Recipient, now: EpochMs) -> bool:
        socket = self._run.sockets[recipient.connection_id]
        fault = self._run.faults.one_of("refused", "answer lost")
        self._run.happened.add(fault)
        if fault == "refused":
            raise Unavailable("storage refused")
        assert not (socket.stored and is_open(socket)), "it is removed while its socket is open"
        socket.stored = False
        if fault == "answer lost":
            raise Unavailable("the answer is lost")
        return True

    def mark_stale(self, connection_id: str, now: EpochMs) -> None:
        """Do nothing: it changes neither the socket nor whether it is stored."""

    revive = mark_stale


class Delivery:
    """Stands in for the sender."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def deliver(self, pages: Iterable[Sequence[Parcel]], _: Deadline) -> Iterator[Outcome]:
        for page in pages:
            for recipient, frames in page:
                result, reason = Result.DELIVERED, ""
                for frame in frames:
                    tries = int(result is Result.DELIVERED)
                    if tries:
                        socket = self._run.sockets[recipient.connection_id]
                        result, reason = self._answer(socket, frame.method)
                        if result is Result.DELIVERED and frame is not PROBE:
                            socket.frames.append(frame.body)
                    yield Outcome(recipient, frame, result, reason, tries)

    def _answer(self, socket: Socket, method: str) -> tuple[Result, str]:
        fault = self._run.faults.one_of("died", "throttled", "timeout", "answer lost")
        self._run.happened.add(fault)
        if fault == "died":
            raise Died
        if socket.state == "handshake":  # it opens while it is asked for again
            socket.state = self._run.random.choice(("opening", "open"))
            return Result.GONE, "gone"
        if socket.state == "opening":
            socket.state = "open"
            return Result.GONE, "gone"
        if fault in ("throttled", "timeout"):
            return Result.STALE, fault
        if socket.refuses:
            return Result.REJECTED, "http_403"
        if socket.state != "open":
            return Result.GONE, "gone"
        if method == "DELETE":
            socket.state = "closed"
        return (Result.STALE, "timeout") if fault == "answer lost" else (Result.DELIVERED, "")


class Writers(Executor):
    """Runs a call at once, or after the deadline, or never."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._late: list[tuple[Callable[[], Any], Future[Any]]] = []

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        fault = self._run.faults.one_of("queued", "running")
        self._run.happened.add(fault)
        if fault == "running":
            future.set_running_or_notify_cancel()
        if fault:
            self._late.append((lambda: call(*arguments, **named), future))
        else:
            self._settle(lambda: call(*arguments, **named), future)
        return future

    def continue_late(self) -> None:
        """Let the late calls end, in any order; some never do, as in a function that dies."""
        late, self._late = self._late, []
        self._run.random.shuffle(late)
        for call, future in late:
            if self._run.random.random() < 0.8 and not future.cancelled():
                self._settle(call, future)

    def _settle(self, call: Callable[[], Any], future: "Future[Any]") -> None:
        try:
            result = call()
        except Unavailable as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def simulate(seed: int) -> set[str]:
    """Simulate disconnects. Returns what happened; raises AssertionError for a broken promise."""
    return Run(seed).run()
