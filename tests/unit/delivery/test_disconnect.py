"""Connections that are ended from the server's side."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from chalicelib.delivery.disconnect import Disconnector
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import RECORDING_SECONDS
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


def test_a_connection_gets_the_last_frame_and_is_closed_and_removed() -> None:
    test = Disconnecting()
    test.disconnector.disconnect([recipient("c")], later(), LAST)
    assert test.delivery.sent == [("c", "last"), ("c", "DELETE")]
    assert test.connections.writes == [("remove", "c")]


def test_a_part_of_the_deadline_is_kept_for_the_removal() -> None:
    test = Disconnecting()
    deadline = later()
    test.disconnector.disconnect([recipient("c")], deadline)
    assert [one.at for one in test.delivery.deadlines] == [deadline.at - RECORDING_SECONDS]


@pytest.mark.parametrize(
    ("results", "sent", "writes"),
    [
        ([(Result.STALE, "throttled")], ["last", "DELETE"], []),
        ([DELIVERED, (Result.STALE, "timeout")], ["last", "DELETE"], []),
        ([GONE], ["last"], [("remove", "c")]),
        ([DELIVERED, GONE], ["last", "DELETE"], [("remove", "c")]),
        ([(Result.STALE, "http_503"), DELIVERED], ["last", "DELETE"], [("remove", "c")]),
        ([(Result.REJECTED, "http_413"), DELIVERED], ["last", "DELETE"], [("remove", "c")]),
        ([(Result.REJECTED, "http_403")], ["last", "DELETE"], [("remove", "c")]),
        ([DELIVERED, (Result.STALE, "http_501")], ["last", "DELETE"], [("remove", "c")]),
    ],
)
def test_a_connection_is_removed_only_if_its_socket_is_closed_or_can_never_be(
    results: list[tuple[Result, str]], sent: list[str], writes: list[tuple[str, str]]
) -> None:
    test = Disconnecting(delivery=FakeDelivery(c=results))
    with nullcontext() if writes else pytest.raises(Unavailable, match="could not be closed"):
        test.disconnector.disconnect([recipient("c")], later(), LAST)
    assert test.delivery.sent == [("c", one) for one in sent]
    assert test.connections.writes == writes


def test_each_connection_that_cannot_be_removed_is_logged_and_the_others_are_removed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    test = Disconnecting(failing=["c", "d"])
    with pytest.raises(Unavailable, match="storage failed"):
        test.disconnector.disconnect([recipient(name) for name in "cde"], later())
    assert [id_ for id_, _ in test.delivery.sent] == ["c", "d", "e"]
    assert test.connections.writes == [("remove", "e")]
    assert caplog.text.count("storage failed") == 2


def test_a_removal_that_is_late_is_an_error_and_its_socket_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    test = Disconnecting(writers=StuckExecutor())
    with pytest.raises(Unavailable, match="in time"):
        test.disconnector.disconnect([recipient("c")], Deadline.after(0))
    assert test.delivery.sent == [("c", "DELETE")]
    assert "1 connections were not removed in time" in caplog.text


@pytest.mark.parametrize(
    ("age_ms", "results", "requests", "closed"),
    [
        (60_000, [GONE], 1, True),
        (1000, [GONE, DELIVERED], 2, True),
        (1000, [GONE], 3, True),
        (1000, [(Result.STALE, "timeout")], 1, False),
    ],
)
def test_closing_is_tried_again_only_while_a_handshake_may_be_unfinished(
    age_ms: int, results: list[tuple[Result, str]], requests: int, closed: bool
) -> None:
    test = Disconnecting(delivery=FakeDelivery(c=results))
    client = recipient("c", age_ms=age_ms)
    assert test.disconnector.close_sockets([client], later()) == [client] * closed
    assert test.delivery.sent == [("c", "DELETE")] * requests
    assert test.connections.writes == []


def test_clients_with_an_expired_token_get_a_notice_and_failures_are_only_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    test = Disconnecting(failing=["c"])
    test.disconnector.disconnect_expired([recipient("c"), recipient("d")], later())
    for name, (id_, notice), close in zip("cd", *[iter(test.delivery.sent)] * 2, strict=True):
        assert (id_, close) == (name, (name, "DELETE"))
        assert json.loads(notice) == {"type": "notice", "code": "token_expired"}
    assert test.connections.writes == [("remove", "d")]
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
