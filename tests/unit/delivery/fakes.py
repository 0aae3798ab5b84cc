"""Stand-ins for the parts around a delivery."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from chalicelib.clock import EpochMs
from chalicelib.delivery.parcel import Outcome, Parcel
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient

NOW = EpochMs(1_700_000_000_000)
DELIVERED = (Result.DELIVERED, "")


def recipient(connection_id: str, user: str = "alice", *, age_ms: int = 60_000) -> Recipient:
    """A recipient that was connected for `age_ms` at NOW; under 30 s it may be in its handshake."""
    return Recipient(
        connection_id, user, None, "https://x.invalid", connected_at=EpochMs(NOW - age_ms)
    )


class FakeDelivery:
    """Delivers nothing: the outcomes are scripted for each connection, the last one repeated.

    The frames after a failed one are not sent, and get its result. `sent` has the connection id and
    the method or body of each frame, in order.
    """

    def __init__(self, **results: tuple[Result, str] | list[tuple[Result, str]]) -> None:
        self._scripts = {
            name: list(script) if isinstance(script, list) else [script]
            for name, script in results.items()
        }
        self.sent: list[tuple[str, str]] = []
        self.deadlines: list[Deadline] = []

    def deliver(self, pages: Iterable[Sequence[Parcel]], deadline: Deadline) -> Iterator[Outcome]:
        self.deadlines.append(deadline)
        for page in pages:
            for recipient, frames in page:
                result, reason = DELIVERED
                for frame in frames:
                    if result is not Result.DELIVERED:
                        yield Outcome(recipient, frame, result, reason, 0)
                        continue
                    sent = frame.body.decode() or frame.method
                    self.sent.append((recipient.connection_id, sent))
                    script = self._scripts.get(recipient.connection_id, [DELIVERED])
                    result, reason = script.pop(0) if len(script) > 1 else script[0]
                    yield Outcome(recipient, frame, result, reason, 1)

    def post(self, connection_id: str, endpoint: str, body: bytes, deadline: Deadline) -> None:
        raise NotImplementedError


class FakeConnections:
    """Records the writes for each connection. Writes for those in `failing` fail."""

    def __init__(self, *failing: str) -> None:
        self.writes: list[tuple[str, str]] = []
        self._failing = failing

    def _write(self, operation: str, connection_id: str) -> None:
        if connection_id in self._failing:
            raise Unavailable("storage failed")
        self.writes.append((operation, connection_id))

    def revive(self, connection_id: str, now: EpochMs) -> None:
        self._write("revive", connection_id)

    def mark_stale(self, connection_id: str, now: EpochMs) -> None:
        self._write("mark_stale", connection_id)

    def remove(self, recipient: Recipient, now: EpochMs) -> bool:
        self._write("remove", recipient.connection_id)
        return True


class StuckExecutor(Executor):
    """Never runs anything."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        return Future()
