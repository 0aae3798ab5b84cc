"""Requests with an `Idempotency-Key`, under crashes, races and the passing of time.

Functions stop before each of their DynamoDB calls, and then die or go on in any order.
"""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.errors import IdempotencyKeyReused, RateLimited, RequestInProgress
from chalicelib.messaging.submissions import Submissions
from chalicelib.protocol.reports import Reply
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.dynamodb import Store
from chalicelib.store.idempotency import CLAIM_MS, Claim, Idempotency
from chalicelib.store.rate_limits import Rate
from chalicelib.store.schema import IDEMPOTENCY_SECONDS
from chalicelib.store.users import Users
from tests.support.tables import Counted, empty, limiter
from tests.support.world import LIFE, NEVER, SCOPES, Handler, Herald, Socket, World

HEADERS = {"content-type": "application/json", "idempotency-key": "key"}
BODY = json.dumps({"messages": [{"to": {"users": ["bob"]}, "data": number} for number in (1, 2)]})
SENDER = Principal("alice", 10**12, scopes=SCOPES)
CALLS = 5  # claim, charge, append, audience, finish


class Scene:
    """Bob is connected; `submit` makes Alice's request with the client of one function."""

    def __init__(self, client: Any) -> None:
        empty(client, LIFE)
        self.client = client
        self.world = World()
        self.bob: Socket = self.world.connect("bob")
        Herald(client, self.world, evicts=False).lifecycle.on_connect(self.bob.event())
        self.bob.state = "open"

    def submit(self, client: Any, body: str = BODY) -> Any:
        herald = Herald(client, self.world, evicts=False)
        return herald.submissions.submit(SENDER, HEADERS, body, Deadline.after(NEVER))

    def handler(self) -> Handler:
        return Handler(self.client, self.submit)

    @property
    def received(self) -> list[str]:
        return self.world.received[self.bob.connection_id]


@pytest.fixture
def scene(life: Any) -> Scene:
    return Scene(life)


class WritesTwice:
    """A DynamoDB client whose first answer to each update is lost, so that the SDK repeats it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def update_item(self, **parameters: Any) -> Any:
        self._client.update_item(**parameters)
        return self._client.update_item(**parameters)


def is_answer(result: Any) -> bool:
    if not isinstance(result, Reply) or result.replayed:
        return False
    return bool(json.loads(result.body)["messages"][0]["delivered"] == 1)


def is_replay(result: Any) -> bool:
    return isinstance(result, Reply) and result.replayed


def test_a_request_with_a_key_takes_five_calls_and_a_replay_two(life: Any) -> None:
    client: Any = Counted(life)
    warm = Herald(client, Scene(life).world, evicts=False)
    deadline = Deadline.after(NEVER)
    warm.submissions.submit(SENDER, HEADERS, BODY, deadline)
    claim, charge, append, read, finish = (
        "update_item",
        "update_item",
        "batch_write_item",
        "batch_get_item",
        "update_item",
    )
    assert client.calls == [claim, charge, append, read, finish]
    client.calls.clear()
    assert is_replay(warm.submissions.submit(SENDER, HEADERS, BODY, deadline))
    assert client.calls == ["update_item", "update_item"]


def test_a_flood_of_requests_with_keys_takes_no_calls(life: Any) -> None:
    client: Any = Counted(life)
    world = Scene(life).world
    herald = Herald(client, world, evicts=False)
    store = Store(client, LIFE)
    once = limiter("messageDue", Rate.per_second(1, 1))
    submissions = Submissions(
        users=Users(
            store,
            message_limiter=once,
            read_limiter=limiter("readDue"),
        ),
        dispatcher=herald.dispatcher,
        idempotency=Idempotency(store),
        may_encrypt=False,
        now=lambda: EpochMs(world.now),
        metrics=herald.metrics,
    )
    submissions.submit(SENDER, HEADERS, BODY, Deadline.after(NEVER))
    client.calls.clear()
    for number in range(10):
        with pytest.raises(RateLimited):
            submissions.submit(
                SENDER, {**HEADERS, "idempotency-key": str(number)}, BODY, Deadline.after(NEVER)
            )
    assert client.calls == []


@pytest.mark.ministack
@pytest.mark.parametrize("calls", range(CALLS + 1))
def test_a_request_that_crashed_before_any_call_is_repeated_with_the_same_ids(
    scene: Scene, calls: int
) -> None:
    dying = scene.handler()
    for _ in range(calls):
        dying.step()
    if not dying.done:
        dying.crash()
        if calls:
            with pytest.raises(RequestInProgress):
                scene.submit(scene.client)
            scene.world.now += CLAIM_MS
        assert is_answer(scene.submit(scene.client))
    assert len(set(scene.received)) == 2
    assert scene.received in (sorted(set(scene.received)), sorted(set(scene.received)) * 2)
    replay = scene.submit(scene.client)
    assert isinstance(replay, Reply)
    assert replay.replayed
    ids = [message["id"] for message in json.loads(replay.body)["messages"]]
    assert ids == sorted(set(scene.received))


@pytest.mark.ministack
@pytest.mark.timeout(300)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.booleans(), max_size=12), after_a_crash=st.booleans())
def test_one_of_two_concurrent_requests_is_carried_out(
    life: Any, turns: list[bool], after_a_crash: bool
) -> None:
    scene = Scene(life)
    if after_a_crash:
        dying = scene.handler()
        for _ in range(CALLS - 1):  # it has sent, but not finished
            dying.step()
        dying.crash()
        scene.world.now += CLAIM_MS
    before = len(scene.received)
    handlers = [scene.handler(), scene.handler()]
    for turn in turns:
        if not handlers[turn].done:
            handlers[turn].step()
    for handler in handlers:
        while not handler.done:
            handler.step()
    assert len(scene.received) == before + 2
    assert len(set(scene.received)) == 2
    assert sum(is_answer(handler.result) for handler in handlers) == 1
    [other] = [handler for handler in handlers if not is_answer(handler.result)]
    assert isinstance(other.error, RequestInProgress) or is_replay(other.result)


def test_a_claim_that_the_sdk_wrote_twice_knows_itself(life: Any) -> None:
    stamp = Stamp(EpochMs(10**12), 7)
    client: Any = WritesTwice(life)
    keys = Idempotency(Store(client, LIFE))
    claim = keys.claim(SENDER, "twice", {}, stamp)
    assert isinstance(claim, Claim)
    assert claim.stamp == stamp
    for other in (Stamp(stamp.now, 8), Stamp(EpochMs(stamp.now + 1), stamp.seed)):
        with pytest.raises(RequestInProgress):
            keys.claim(SENDER, "twice", {}, other)


def test_a_key_is_remembered_for_a_day(scene: Scene) -> None:
    scene.submit(scene.client)
    scene.world.now += IDEMPOTENCY_SECONDS * 1000 - 1
    assert is_replay(scene.submit(scene.client))
    with pytest.raises(IdempotencyKeyReused):
        scene.submit(scene.client, json.dumps({"to": {"users": ["bob"]}, "data": 3}))
    scene.world.now += 1000  # DynamoDB's TTL has not deleted it yet
    assert is_answer(scene.submit(scene.client, json.dumps({"to": {"users": ["bob"]}, "data": 3})))


@pytest.mark.ministack
def test_a_refused_retry_does_not_lose_the_ids_of_a_crashed_try(scene: Scene) -> None:
    dying = scene.handler()
    for _ in range(CALLS - 1):
        dying.step()
    dying.crash()
    scene.world.now += CLAIM_MS
    herald = Herald(scene.client, scene.world, evicts=False)
    may_not = Principal("alice", 10**12)
    with pytest.raises(Exception, match="scope"):
        herald.submissions.submit(may_not, HEADERS, BODY, Deadline.after(NEVER))
    assert is_answer(scene.submit(scene.client))
    assert len(scene.received) == 4
    assert len(set(scene.received)) == 2


def test_a_response_too_large_for_an_item_is_stored_without_its_failures(life: Any) -> None:
    keys = Idempotency(Store(life, LIFE))
    claim = keys.claim(SENDER, "large", {}, Stamp.fresh(EpochMs(10**12)))
    assert isinstance(claim, Claim)
    failed = [
        {
            "connectionId": next(Stamp.fresh(EpochMs(number)).ids()),
            "userId": "x" * 128,
            "reason": "gone",
        }
        for number in range(10_000)
    ]
    messages = [{"id": "a", "recipients": 2, "failed": failed} for _ in range(4)]
    keys.finish(claim, {"messages": messages, "durationMs": 1}, 202)
    replay = keys.claim(SENDER, "large", {}, Stamp.fresh(EpochMs(10**12)))
    assert isinstance(replay, Reply)
    assert replay.replayed
    assert json.loads(replay.body) == {
        "messages": [{"id": "a", "recipients": 2, "failed": []}] * 4,
        "durationMs": 1,
    }
