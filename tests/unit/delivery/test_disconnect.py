"""Connections that are ended from the server's side."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import frame_of
from chalicelib.errors import Unavailable
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from tests.support.world import Inline
from tests.unit.delivery.fakes import (
    DELIVERED,
    NOW,
    FakeConnections,
    FakeDelivery,
    StuckExecutor,
    recipient,
)

LAST = frame_of(b"last")
GONE = (Result.GONE, "gone")
SECONDS = 20.0


class Disconnecting:
    """A Disconnector over fakes."""

    def __init__(
        self,
        *,
        failing: Sequence[str] = (),
        delivery: FakeDelivery | None = None,
        writers: Any = None,
    ) -> None:
        self.connections = FakeConnections(*failing)
        connections: Any = self.connections
        self.delivery = delivery or FakeDelivery()
        self.disconnector = Disconnector(
            connections=connections,
            delivery=self.delivery,
            writers=writers or Inline(),
            now=lambda: NOW,
            handshake_pauses=(0.0, 0.0),
        )


def later() -> Deadline:
    return Deadline.after(SECONDS)


def test_a_connection_is_removed_gets_the_last_frame_and_is_closed() -> None:
    test = Disconnecting()
    test.disconnector.disconnect([recipient("c")], later(), LAST)
    assert test.connections.writes == [("remove", "c")]
    assert test.delivery.sent == [("c", "last"), ("c", "DELETE")]


def test_a_connection_that_cannot_be_removed_stays_open_and_the_others_are_closed() -> None:
    test = Disconnecting(failing=["c"])
    with pytest.raises(Unavailable):
        test.disconnector.disconnect([recipient("c"), recipient("d")], later())
    assert test.delivery.sent == [("d", "DELETE")]


def test_connections_that_are_not_removed_by_the_deadline_stay_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    test = Disconnecting(writers=StuckExecutor())
    test.disconnector.disconnect([recipient("c")], Deadline.after(0))
    assert test.delivery.sent == []
    assert "1 connections were not removed in time" in caplog.text


@pytest.mark.parametrize(
    ("age_ms", "results", "requests"),
    [
        (60_000, [GONE], 1),
        (1000, [GONE, DELIVERED], 2),
        (1000, [GONE], 3),
        (1000, [(Result.STALE, "timeout")], 1),
    ],
)
def test_closing_is_tried_again_only_while_a_handshake_may_be_unfinished(
    age_ms: int, results: list[tuple[Result, str]], requests: int
) -> None:
    test = Disconnecting(delivery=FakeDelivery(c=results))
    test.disconnector.close_sockets([recipient("c", age_ms=age_ms)], later())
    assert test.delivery.sent == [("c", "DELETE")] * requests
    assert test.connections.writes == []


def test_clients_with_an_expired_token_get_a_notice_and_failures_are_only_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    test = Disconnecting(failing=["c"])
    test.disconnector.disconnect_expired([recipient("c"), recipient("d")], later())
    [(_, notice), close] = test.delivery.sent
    assert json.loads(notice) == {"type": "notice", "code": "token_expired"}
    assert close == ("d", "DELETE")
    assert "storage failed" in caplog.text


def test_an_evicted_client_gets_the_reason() -> None:
    test = Disconnecting()
    test.disconnector.evict(recipient("c"), later())
    [(_, notice), close] = test.delivery.sent
    assert json.loads(notice) == {
        "type": "notice",
        "code": "connection_removed",
        "connectionId": "c",
        "reason": "connection_limit",
    }
    assert close == ("c", "DELETE")
