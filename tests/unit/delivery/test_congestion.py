"""Congestion windows and the queues of endpoints."""

import math
import time

import pytest

from chalicelib.delivery.congestion import (
    FIRST_CONNECTIONS,
    MAX_WINDOW,
    QUEUE_PER_CONNECTION,
    START_WINDOW,
    CongestionWindow,
    EndpointQueue,
    EndpointTimeouts,
)
from chalicelib.delivery.http_connection import HttpConnection, Origin
from chalicelib.delivery.sigv4 import RequestSigner
from chalicelib.runtime.aws import Credentials
from tests.unit.delivery.parcels import connection_ids, parcels

ENDPOINT = "http://127.0.0.1/prod"
NOW = 1000.0


def queue_of(number: int, timeouts: EndpointTimeouts | None = None) -> EndpointQueue:
    """Return a queue in which `number` tasks are ready."""
    signer = RequestSigner(
        ENDPOINT, region="r", credentials=lambda: Credentials("AK", "s"), now=time.time
    )
    queue = EndpointQueue(Origin(ENDPOINT), signer, timeouts or EndpointTimeouts())
    for parcel in parcels(ENDPOINT, connection_ids(number)):
        queue.add(parcel, now=NOW)
    return queue


def test_the_window_halves_once_for_requests_that_were_in_flight_together() -> None:
    window = CongestionWindow()
    for sent_at in (1.0, 2.0, 3.0):
        window.throttled(sent_at, now=5.0)
    assert window.size == START_WINDOW / 2
    window.throttled(6.0, now=7.0)
    assert window.size == START_WINDOW / 4


def test_the_window_has_a_minimum_and_a_maximum() -> None:
    window = CongestionWindow()
    for moment in range(100):
        window.throttled(moment, now=moment)
    assert window.size == 1
    for _ in range(3):
        window.succeeded()
    assert 2 < window.size < 3
    for _ in range(MAX_WINDOW**2):
        window.succeeded()
    assert window.size == MAX_WINDOW


def test_no_more_than_a_window_is_in_flight() -> None:
    queue = queue_of(1000)
    queue.in_flight = START_WINDOW - 1
    assert queue.may_send()
    queue.in_flight = START_WINDOW
    assert not queue.may_send()


def test_an_empty_queue_sends_nothing() -> None:
    assert not queue_of(0).may_send()


@pytest.mark.parametrize("idle", [False, True])
def test_further_connections_are_opened_only_for_a_long_queue(idle: bool) -> None:
    busy = FIRST_CONNECTIONS
    for ready, may_send in ((busy * QUEUE_PER_CONNECTION, idle), (1000, True)):
        queue = queue_of(ready)
        queue.window.size = MAX_WINDOW
        queue.in_flight = busy
        if idle:
            queue.origin.idle.append(HttpConnection(queue.origin, "task", b"", 0.0))
        assert queue.may_send() is may_send


def test_an_endpoint_is_silent_then_unreachable_while_it_owes_a_response() -> None:
    queue = queue_of(1, EndpointTimeouts(silent=1.0, unreachable=5.0))
    for seconds, silent, unreachable, change in (
        (0.5, False, False, NOW + 1),
        (1.0, True, False, NOW + 5),
        (4.5, True, False, NOW + 5),
        (5.0, True, True, NOW + 5),
    ):
        now = NOW + seconds
        assert (queue.is_silent(now), queue.is_unreachable(now)) == (silent, unreachable)
        assert queue.next_change(now) == change
    queue.ready.clear()
    assert queue.next_change(NOW + 2) == math.inf


def test_an_endpoint_that_owes_no_response_is_never_silent() -> None:
    queue = queue_of(1)
    queue.reset()
    assert not queue.is_silent(NOW + 1000)
    assert not queue.is_unreachable(NOW + 1000)
    assert queue.next_change(NOW) == math.inf


def test_a_queue_that_was_empty_for_long_is_not_silent_at_once() -> None:
    queue = queue_of(0)
    queue.last_response_at = NOW - 1000
    [parcel] = parcels(ENDPOINT, ["c="])
    queue.add(parcel, NOW)
    assert not queue.is_silent(NOW)
