"""The sender, simulated with fixed seeds; `make fuzz` takes new ones."""

from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.delivery.congestion import EndpointQueue
from chalicelib.delivery.http import Transport
from chalicelib.delivery.read_ahead import ReadAhead
from chalicelib.delivery.retries import RetryQueue
from chalicelib.delivery.sender import SendLoop
from tests.simulation.delivery import simulate
from tests.simulation.seeds import first_failure

SEEDS = range(1000)
EVERYTHING = {
    "abandoned", "an idle socket was reset", "an unknown name", "a full buffer", "close",
    "connection_failed", "deadline", "gone", "half", "http_403", "malformed_answer",
    "no file descriptor", "no length", "no_credentials", "refused", "refused at once", "split",
    "storage", "the audience could not be read to its end in time", "throttled", "timeout",
    "unreachable",
}  # fmt: skip


def test_a_simulated_sender_keeps_its_promises() -> None:
    assert first_failure(simulate, SEEDS, EVERYTHING) is None


# --- The simulation finds mistakes: each of these puts one in


def waits_while_completions_are_there(patch: pytest.MonkeyPatch) -> None:
    def poll(self: Any, seconds: float) -> Any:
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.data is None:
                self._on_wake()
            else:
                key.data.on_ready(key.data)
        now = self._monotonic()
        for connections in (self._opening, self._busy):
            while connections and (first := next(iter(connections))).timeout_at <= now:
                self._fail(first, "timeout")
        return self._take_completions()

    patch.setattr(Transport, "poll", poll)


def forgets_when_a_retry_is_due(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RetryQueue, "next_due", lambda self: float("inf"))


def forgets_the_frames_after_a_failed_one(patch: pytest.MonkeyPatch) -> None:
    fail = SendLoop._fail
    patch.setattr(SendLoop, "_fail", lambda *arguments: fail(*arguments)[:1])


def drops_completions_at_the_deadline(patch: pytest.MonkeyPatch) -> None:
    cancel_all = Transport.cancel_all
    patch.setattr(Transport, "cancel_all", lambda self: ([], cancel_all(self)[1]))


def receives_after_the_deadline(patch: pytest.MonkeyPatch) -> None:
    report_unsent = SendLoop._report_unsent

    def late(self: Any, source: Any, deadline: Any) -> Any:
        yield from self._hand_over(self._receive(self._monotonic() + 0.3))
        yield from report_unsent(self, source, deadline)

    patch.setattr(SendLoop, "_report_unsent", late)


def blames_an_endpoint_for_a_pause_of_its_caller(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SendLoop, "_hand_over", lambda self, outcomes: iter(outcomes))


def forgets_when_a_silent_endpoint_makes_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EndpointQueue, "next_change", lambda self, now: float("inf"))


def loses_what_was_read_before_a_page_that_fails(patch: pytest.MonkeyPatch) -> None:
    take = ReadAhead.take

    def raises(self: Any) -> Any:
        page = take(self)
        if self.error is not None:
            raise self.error
        return page

    patch.setattr(ReadAhead, "take", raises)


def loses_a_frame_on_a_socket_that_was_reset(patch: pytest.MonkeyPatch) -> None:
    on_completion = SendLoop._on_completion

    def loses(self: Any, completion: Any) -> Any:
        if completion.resend:
            completion.task.queue.in_flight -= 1
            return ()
        return on_completion(self, completion)

    patch.setattr(SendLoop, "_on_completion", loses)


def leaves_sockets_open(patch: pytest.MonkeyPatch) -> None:
    def close(self: Any, connection: Any) -> None:
        self._opening.pop(connection, None)
        self._busy.pop(connection, None)
        if connection.watched:
            self._selector.unregister(connection.sock)

    patch.setattr(Transport, "_close", close)


MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (waits_while_completions_are_there, "it waits while there are completions"),
    (forgets_when_a_retry_is_due, "it waits while a retry is due"),
    (forgets_the_frames_after_a_failed_one, "not each frame has one outcome"),
    (drops_completions_at_the_deadline, "not each frame has one outcome"),
    (loses_a_frame_on_a_socket_that_was_reset, "not each frame has one outcome"),
    (loses_what_was_read_before_a_page_that_fails, "not each frame has one outcome"),
    (receives_after_the_deadline, "it"),
    (blames_an_endpoint_for_a_pause_of_its_caller, "it gives an endpoint up too early"),
    (forgets_when_a_silent_endpoint_makes_room, "it waits while a silent endpoint makes room"),
    (leaves_sockets_open, "sockets are left open"),
]


@pytest.mark.parametrize(
    ("mistake", "failure"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES]
)
def test_the_simulation_finds_a_sender_that(
    mistake: Callable[[pytest.MonkeyPatch], None], failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    found = first_failure(simulate, SEEDS)
    assert found is not None
    assert failure in found
