"""Compares every frame that Herald sends with the schemas of `docs/asyncapi.yaml`."""

import pytest
from jsonschema import ValidationError

from chalicelib.errors import ANSWERS, HeraldError, InternalError, RateLimited
from chalicelib.protocol import server_frames
from chalicelib.protocol.reports import Queued, Report, Result
from chalicelib.protocol.server_frames import ServerFrame
from tests.support.schemas import DOCUMENTS, check_received, name_of
from tests.support.tables import NOW

ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def report() -> Report:
    found = Report(ID)
    found.add("c1", "bob", Result.DELIVERED, "")
    found.add("c2", "bob", Result.STALE, "timeout")
    return found


FRAMES: dict[str, ServerFrame] = {
    "pong": server_frames.pong(NOW),
    "heartbeat": server_frames.heartbeat(NOW),
    "ack": server_frames.ack(report()),
    "ack, queued": server_frames.ack(Queued(ID)),
    "joined": server_frames.joined("room"),
    "left": server_frames.left("room"),
    "resumed": server_frames.resumed(count=3, complete=False),
    "refreshed": server_frames.refreshed(NOW),
    "error": server_frames.error(InternalError()),
    "error, to try again": server_frames.error(RateLimited("too fast", retry_after=0.25)),
    "notice, token_expired": server_frames.token_expired(),
    "notice, connection_removed": server_frames.connection_removed("c1", "http_403"),
}

BUILT_ELSEWHERE = {"messages"}  # by `delivery/frames.py`


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_every_frame_has_the_documented_form(frame: ServerFrame) -> None:
    check_received(frame)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("ref", ["", "r1"])
def test_answers_may_carry_a_ref_and_notices_may_not(frame: ServerFrame, ref: str) -> None:
    answer = server_frames.with_ref(frame, ref)
    assert answer["ref"] == ref
    if frame["type"] == "notice":
        with pytest.raises(ValidationError):
            check_received(answer)
    else:
        check_received(answer)


def test_a_request_without_a_ref_is_answered_without_one() -> None:
    assert server_frames.with_ref(server_frames.pong(NOW), None) == server_frames.pong(NOW)


def test_every_documented_frame_has_a_function() -> None:
    operations = DOCUMENTS["asyncapi.yaml"]["operations"]
    documented = operations["ask"]["reply"]["messages"] + operations["deliver"]["messages"]
    names = {reference["$ref"].rpartition("/")[2] for reference in documented}
    assert {name_of(str(frame["type"])) for frame in FRAMES.values()} == names - BUILT_ELSEWHERE


@pytest.mark.parametrize("code", ANSWERS)
def test_every_error_has_a_documented_code(code: str) -> None:
    kind = type("Kind", (HeraldError,), {"code": code})
    check_received(server_frames.error(kind("wrong")))


def test_an_error_to_try_again_says_after_at_least_a_millisecond() -> None:
    assert server_frames.error(RateLimited("too fast", retry_after=0.25))["retryAfterMs"] == 250
    assert server_frames.error(RateLimited("too fast", retry_after=0.0))["retryAfterMs"] == 1
    assert "retryAfterMs" not in server_frames.error(RateLimited("too fast"))
