"""A request is read, charged and carried out; its end decides what its `Idempotency-Key` does."""

import json
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import (
    BadRequest,
    Forbidden,
    HeraldError,
    IdempotencyKeyReused,
    RateLimited,
    RequestInProgress,
    Unavailable,
    UnsupportedMediaType,
)
from chalicelib.messaging.submissions import Submissions
from chalicelib.protocol.reports import Queued, Reply, Report
from chalicelib.protocol.ulid import Stamp, timestamp_of
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.idempotency import Claim

NOW = EpochMs(1_795_477_071_772)
EARLIER = Stamp(EpochMs(NOW - 60_000), 7)
SENDER = Principal("alice", 10**12)
UNITS = 3
JSON = {"content-type": "application/json"}
WITH_KEY = {**JSON, "idempotency-key": "key"}
BODY = json.dumps({"messages": [{"to": {"users": ["bob"]}, "data": number} for number in (1, 2)]})


@dataclass
class Parts:
    """Stands in for the parts of Submissions, and records their calls in `calls`.

    An error in `errors` is raised by the call of that name; `claimed` is the result of a claim.
    """

    calls: list[Any] = field(default_factory=list)
    errors: dict[str, BaseException] = field(default_factory=dict)
    claimed: Claim | Reply | None = None
    queues: bool = False
    sent: list[str] = field(default_factory=list)

    def _call(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments) if arguments else name)
        if name in self.errors:
            raise self.errors[name]

    def check(self, sender: Principal, now: EpochMs) -> None:
        self._call("check")

    def charge(
        self, sender: Principal, now: EpochMs, messages: int, *, units: int | None = None
    ) -> None:
        self._call("charge", messages, *(() if units is None else (units,)))

    def units(self, messages: Any) -> int:
        return UNITS

    def claim(self, sender: Principal, key: str, request: object, stamp: Stamp) -> Any:
        self._call("claim")
        return self.claimed or Claim("item", stamp, EpochMs(NOW + 1))

    def send(self, messages: Any, sender: Principal, deadline: Deadline, *, paid: int) -> list[Any]:
        assert paid == UNITS
        self._call("send")
        self.sent = [message.id for message in messages]
        return [(Queued if self.queues else Report)(message_id) for message_id in self.sent]

    def finish(self, claim: Claim, answer: Any, status: int) -> None:
        self._call("finish", status)

    def release(self, claim: Claim) -> None:
        self._call("release")

    def forget(self, claim: Claim) -> None:
        self._call("forget")


def submit(parts: Any, body: str = BODY, headers: dict[str, str] = JSON) -> Reply:
    submissions = Submissions(
        users=parts,
        dispatcher=parts,
        idempotency=parts,
        may_encrypt=False,
        now=lambda: NOW,
        metrics=Metrics("test"),
    )
    return submissions.submit(SENDER, headers, body, Deadline.after(1))


# --- Without a key


def test_a_request_is_charged_its_units_before_it_is_sent_and_answered_with_reports() -> None:
    parts = Parts()
    reply = submit(parts)
    assert parts.calls == ["check", ("charge", 2, UNITS), "send"]
    answer = json.loads(reply.body)
    assert (reply.status, reply.replayed) == (200, False)
    assert [message["id"] for message in answer["messages"]] == parts.sent
    assert [timestamp_of(message_id) for message_id in parts.sent] == [NOW, NOW]
    assert answer["durationMs"] >= 0


def test_a_queued_request_is_answered_with_202() -> None:
    parts = Parts(queues=True)
    reply = submit(parts)
    assert reply.status == 202
    assert json.loads(reply.body) == {
        "messages": [{"id": message_id, "queued": True} for message_id in parts.sent]
    }


def test_a_sender_over_the_limit_is_refused_before_anything_is_read() -> None:
    parts = Parts(errors={"check": RateLimited("too fast")})
    with pytest.raises(RateLimited):
        submit(parts, "not JSON", WITH_KEY)
    assert parts.calls == ["check"]


@pytest.mark.parametrize(
    ("body", "headers", "error"),
    [
        (BODY, {"content-type": "text/plain"}, UnsupportedMediaType),
        ("{", JSON, BadRequest),
        ("{}", JSON, BadRequest),
        (BODY, {**JSON, "idempotency-key": ""}, BadRequest),
    ],
)
def test_a_request_that_cannot_be_read_is_charged_too(
    body: str, headers: dict[str, str], error: type[HeraldError]
) -> None:
    parts = Parts()
    with pytest.raises(error):
        submit(parts, body, headers)
    assert parts.calls == ["check", ("charge", 0)]


# --- With a key


def test_the_answer_of_a_claimed_request_is_stored() -> None:
    parts = Parts()
    assert submit(parts, headers=WITH_KEY).status == 200
    assert parts.calls == ["check", "claim", ("charge", 2, UNITS), "send", ("finish", 200)]


def test_a_stored_answer_is_returned_and_charged() -> None:
    stored = Reply(b"{}", 200, replayed=True)
    parts = Parts(claimed=stored)
    assert submit(parts, headers=WITH_KEY) is stored
    assert parts.calls == ["check", "claim", ("charge", 0)]


@pytest.mark.parametrize("error", [RequestInProgress, IdempotencyKeyReused])
def test_a_request_whose_key_is_in_use_is_charged_too(error: type[HeraldError]) -> None:
    parts = Parts(errors={"claim": error("in use")})
    with pytest.raises(error):
        submit(parts, headers=WITH_KEY)
    assert parts.calls == ["check", "claim", ("charge", 0)]


def test_a_later_try_sends_under_the_ids_of_the_first() -> None:
    parts = Parts(claimed=Claim("item", EARLIER, EpochMs(NOW + 1)))
    submit(parts, headers=WITH_KEY)
    assert parts.sent == list(islice(EARLIER.ids(), 2))


@pytest.mark.parametrize("step", ["charge", "send"])
def test_the_key_of_a_request_that_was_refused_is_free_again(step: str) -> None:
    parts = Parts(errors={step: Forbidden("no")})
    with pytest.raises(Forbidden):
        submit(parts, headers=WITH_KEY)
    assert parts.calls[-1] == "forget"


def test_the_claim_of_a_later_try_that_was_refused_is_released_for_the_next() -> None:
    parts = Parts(
        errors={"send": Forbidden("no")}, claimed=Claim("item", EARLIER, EpochMs(NOW + 1))
    )
    with pytest.raises(Forbidden):
        submit(parts, headers=WITH_KEY)
    assert parts.calls[-1] == "release"


@pytest.mark.parametrize("error", [Unavailable("storage"), RuntimeError(), KeyboardInterrupt()])
def test_the_claim_of_a_request_that_broke_off_is_released_for_the_next_try(
    error: BaseException,
) -> None:
    parts = Parts(errors={"send": error})
    with pytest.raises(type(error)):
        submit(parts, headers=WITH_KEY)
    assert parts.calls[-1] == "release"


def test_a_request_is_answered_even_if_its_answer_cannot_be_stored() -> None:
    parts = Parts(errors={"finish": Unavailable("storage")})
    assert submit(parts, headers=WITH_KEY).status == 200


def test_an_error_is_raised_even_if_its_key_cannot_be_freed() -> None:
    parts = Parts(errors={"send": Forbidden("no"), "forget": Unavailable("storage")})
    with pytest.raises(Forbidden):
        submit(parts, headers=WITH_KEY)
