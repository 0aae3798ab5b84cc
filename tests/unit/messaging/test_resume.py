"""What a resume finds, case by case: membership, order in doubt, encryption, sizes and costs."""

import json
import time
from typing import Any

import pytest

from chalicelib.auth.principal import Principal, Scope
from chalicelib.messaging import resume
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import MessageParser
from chalicelib.protocol.ulid import Stamp, earliest
from chalicelib.settings import MasterKey
from chalicelib.store.dynamodb import Store
from chalicelib.store.history import History
from tests.support.tables import HISTORY_SECONDS, Counted
from tests.support.world import LIFE, NEVER, SCOPES, Herald, Inline, Socket, World

SENDER = Principal("server", 10**12, scopes=SCOPES | {Scope.MESSAGES_BROADCAST})
USER = {"users": ["alice"]}


class Scene(World):
    """Alice comes and goes; `frames` is what she has got since she came."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.client = Counted(client)
        self.herald = Herald(self.client, self, evicts=True)
        self.frames: list[Any] = []
        self.socket = self.come()

    def arrive(self, connection_id: str, body: bytes) -> None:
        if body and connection_id == self.socket.connection_id:
            self.frames.append(json.loads(body))

    def come(self) -> Socket:
        self.pass_time(1)
        self.socket = self.connect("alice")
        self.herald.lifecycle.on_connect(self.socket.event())
        self.socket.state = "open"
        self.frames.clear()
        return self.socket

    def go(self) -> None:
        self.socket.state = "closed"
        self.herald.lifecycle.on_disconnect(self.socket.event())

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds

    def say(self, **frame: object) -> Any:
        self.pass_time(1)
        event = self.socket.event(json.dumps(frame))
        self.herald.actions.receive(event, time.monotonic() + NEVER)
        return self.frames[-1]

    def send(self, *bodies: Any, at: int | None = None, herald: Herald | None = None) -> list[str]:
        """Send messages in one request; their ids. `at` is when it was accepted."""
        self.pass_time(1)
        stamp = Stamp.fresh(self.now if at is None else at)
        messages = MessageParser("server", stamp, may_encrypt=True).batch({"messages": [*bodies]})
        deadline = time.monotonic() + NEVER
        (herald or self.herald).dispatcher.send(messages, SENDER, deadline)
        return [message.id for message in messages]

    def resume(self, after: str) -> tuple[list[str], Any]:
        """The ids that come, and the answer."""
        self.frames.clear()
        answer = self.say(action="resume", after=after)
        messages = [message for frame in self.frames[:-1] for message in frame["messages"]]
        return [message["id"] for message in messages], answer


@pytest.fixture
def scene(life: Any) -> Scene:
    return Scene(life)


def to(user: str = "alice", data: object = 1, **more: Any) -> dict[str, Any]:
    return {"to": {"users": [user]}, "data": data, **more}


# --- What is in doubt


def test_what_another_function_sent_just_before_may_have_come_later(scene: Scene) -> None:
    """Alice has `had`; whether she has what was accepted before it, nobody can tell."""
    other = Herald(scene.client, scene)
    [doubtful] = scene.send(to(), herald=other)
    [known] = scene.send(to())
    [had] = scene.send(to())
    assert scene.resume(had) == ([doubtful], {"type": "resumed", "count": 1, "complete": True})
    assert known  # it was sent before `had` by the same: she has it, or was away


def test_who_has_a_message_has_those_before_it_in_its_request(scene: Scene) -> None:
    _, had, after = scene.send(to(), to(), to())
    assert scene.resume(had)[0] == [after]


def test_it_does_not_reach_back_for_ever(scene: Scene) -> None:
    other = Herald(scene.client, scene)
    scene.send(to(), herald=other)
    scene.pass_time(33_000)
    [had] = scene.send(to())
    assert scene.resume(had)[0] == []


def test_a_second_try_of_a_request_is_found_though_its_ids_are_old(scene: Scene) -> None:
    accepted = scene.now
    scene.pass_time(120_000)
    [had] = scene.send(to())
    scene.go()
    [late] = scene.send(to(), at=accepted)
    scene.come()
    assert scene.resume(had)[0] == [late]


def test_late_messages_are_for_whom_they_concern(scene: Scene) -> None:
    accepted = scene.now
    scene.pass_time(120_000)
    [had] = scene.send(to())
    wanted = [
        scene.send(one, at=accepted)[0]
        for one in (
            to(),
            {"to": {"groups": ["team"]}, "data": 1},
            {"to": {"all": True}, "data": 1},
        )
    ]
    for unwanted in (
        to("bob"),
        to(store=False),
        {"to": {"groups": ["room-1"]}, "data": 1},
        {"to": {"all": True, "exceptUsers": ["alice"]}, "data": 1},
        {"to": {"connections": [scene.socket.connection_id]}, "data": 1},
    ):
        scene.send(unwanted, at=accepted)
    assert scene.resume(had)[0] == sorted(wanted)


def test_a_message_in_several_of_her_groups_comes_once(scene: Scene) -> None:
    scene.say(action="join", group="room-1")
    [had] = scene.send(to())
    [both] = scene.send({"to": {"groups": ["team", "room-1"]}, "data": 1})
    assert scene.resume(had)[0] == [both]


def test_an_excepted_connection_is_excepted_when_it_resumes(scene: Scene) -> None:
    [had] = scene.send(to())
    audience = {"users": ["alice"], "exceptConnections": [scene.socket.connection_id]}
    [other] = scene.send({"to": audience, "data": 1})
    assert scene.resume(had)[0] == []
    scene.come()
    assert scene.resume(had)[0] == [other]


# --- Membership


def room(scene: Scene) -> str:
    [message_id] = scene.send({"to": {"groups": ["room-1"]}, "data": 1})
    return message_id


def test_who_joins_after_a_message_does_not_get_it(scene: Scene) -> None:
    [had] = scene.send(to())
    room(scene)
    scene.say(action="join", group="room-1")
    wanted = room(scene)
    assert scene.resume(had)[0] == [wanted]


@pytest.mark.parametrize("known", [True, False], ids=["ended", "half-open"])
def test_a_membership_outlives_its_connection(scene: Scene, known: bool) -> None:
    scene.say(action="join", group="room-1")
    [had] = scene.send(to())
    if known:
        scene.go()
    missed = room(scene)
    scene.come()
    scene.say(action="join", group="room-1")
    assert scene.resume(had)[0] == [missed]


def test_who_left_gets_nothing_though_an_earlier_connection_was_in(scene: Scene) -> None:
    scene.say(action="join", group="room-1")
    [had] = scene.send(to())
    scene.go()
    scene.come()
    scene.say(action="join", group="room-1")
    scene.say(action="leave", group="room-1")
    room(scene)
    assert scene.resume(had)[0] == []


@pytest.mark.parametrize("groups", [["team"], ["room-1"], ["team", "room-1"]])
def test_who_left_and_joined_again_gets_what_came_after_that(
    scene: Scene, groups: list[str]
) -> None:
    """Also of the token's own group, whose membership is as old as the connection otherwise."""
    [had] = scene.send(to())
    for group in groups:
        scene.say(action="join", group=group)
        scene.say(action="leave", group=group)
        scene.send({"to": {"groups": [group]}, "data": 1})
        scene.say(action="join", group=group)
    wanted = scene.send(*({"to": {"groups": [group]}, "data": 1} for group in groups))
    assert scene.resume(had)[0] == wanted
    scene.go()
    scene.come()
    assert scene.resume(had)[0] == wanted


def test_joining_twice_changes_nothing(scene: Scene) -> None:
    [had] = scene.send(to())
    scene.say(action="join", group="room-1")
    wanted = [room(scene), scene.send({"to": {"groups": ["team"]}, "data": 1})[0]]
    for group in ("team", "room-1"):
        scene.say(action="join", group=group)
    assert scene.resume(had)[0] == wanted


def test_a_membership_that_ended_long_ago_is_forgotten(scene: Scene) -> None:
    scene.say(action="join", group="room-1")
    scene.go()
    notes = scene.client.scan(TableName=LIFE.history)["Items"]
    [note] = [note for note in notes if note["stream"]["S"].startswith("was/")]
    assert int(note["expiresAt"]["N"]) == scene.now // 1000 + HISTORY_SECONDS + 1
    scene.pass_time((HISTORY_SECONDS + 2) * 1000)  # and TTL has not taken it yet
    [had] = scene.send(to())
    room(scene)
    scene.come()
    scene.say(action="join", group="room-1")
    assert scene.resume(had)[0] == []


# --- What is kept


def test_what_is_kept_goes_by_itself(scene: Scene) -> None:
    scene.send(to())
    [item] = scene.client.scan(TableName=LIFE.history)["Items"]
    assert int(item["expiresAt"]["N"]) - scene.now // 1000 - HISTORY_SECONDS in (33, 34)


@pytest.mark.parametrize("over", [1, 40])
def test_what_ttl_has_not_taken_yet_is_no_more(scene: Scene, over: int) -> None:
    accepted = scene.now
    scene.send(to())
    scene.pass_time((HISTORY_SECONDS + over) * 1000)
    ids, answer = scene.resume(earliest(accepted - 1))
    assert (ids, answer["complete"]) == ([], False)


def test_what_is_in_doubt_and_no_more_is_not_complete(scene: Scene) -> None:
    [doubtful] = scene.send(to(), herald=Herald(scene.client, scene))
    scene.pass_time(10_000)
    [had] = scene.send(to())
    assert scene.resume(had) == ([doubtful], {"type": "resumed", "count": 1, "complete": True})
    scene.pass_time((HISTORY_SECONDS - 5) * 1000)
    assert scene.resume(had) == ([], {"type": "resumed", "count": 0, "complete": False})
    scene.send(to())
    [had] = scene.send(to())
    assert scene.resume(had) == ([], {"type": "resumed", "count": 0, "complete": True})


def test_an_id_of_the_future_is_one_of_now(scene: Scene) -> None:
    [had] = scene.send(to())
    ids, answer = scene.resume(earliest(scene.now + 10**9))
    assert (ids, answer["complete"]) == ([had], True)


def test_encrypted_messages_are_kept_encrypted(scene: Scene, life: Any) -> None:
    keys = (MasterKey("k1", b"1" * 32),)
    encryption = Encryption(keys)
    kept = History(
        Store(life, LIFE),
        seconds=HISTORY_SECONDS,
        encryption=encryption,
        writers=Inline(),
        now=lambda: scene.now,
    )
    parser = MessageParser("server", Stamp.fresh(scene.now), may_encrypt=True)
    message = parser.one(to(data="a secret", encrypt=True))
    kept.keep([message], None)
    [item] = life.scan(TableName=LIFE.history)["Items"]
    assert "packed" not in item
    assert b"a secret" not in item["sealed"]["B"]
    [entry] = kept.of_user(None, "alice", scene.now - 1)
    assert kept.open(entry).data == "a secret"
    assert kept.open(entry).encrypted

    ids, answer = scene.resume(earliest(scene.now - 1))  # this Herald has no such key
    assert (ids, answer["complete"]) == ([], False)


@pytest.mark.parametrize("size", [10, 5000])
def test_many_are_sent_in_frames_of_a_size(
    scene: Scene, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "CHUNK_MESSAGES", 30)
    after = earliest(scene.now)
    sent = [
        message_id
        for _ in range(5)
        for message_id in scene.send(*(to(data="x" * size) for _ in range(50)))
    ]
    ids, answer = scene.resume(after)
    assert ids == sent
    assert answer == {"type": "resumed", "count": 250, "complete": True}
    assert all(len(json.dumps(frame)) < 33_000 for frame in scene.frames)
    assert len(scene.frames) - 1 == (9 if size == 10 else 42)


def test_a_connection_that_takes_no_more_is_told_to_try_again(scene: Scene) -> None:
    [had] = scene.send(to())
    scene.send(to())
    scene.trouble = True
    scene.herald.actions.receive(
        scene.socket.event(json.dumps({"action": "resume", "after": had})), NEVER
    )
    scene.trouble = False
    assert scene.resume(had)[1]["count"] == 1


# --- What it costs, in DynamoDB calls


@pytest.mark.parametrize(
    ("to", "calls"),
    [
        ({"users": ["a"]}, 1),
        ({"users": [f"u{number}" for number in range(25)]}, 1),
        ({"users": [f"u{number}" for number in range(26)]}, 2),
        ({"users": [f"u{number}" for number in range(100)]}, 4),
        ({"users": ["a", "b"], "exceptUsers": ["a", "b"]}, 0),
        ({"groups": ["team"]}, 1),
        ({"groups": [f"g{number}" for number in range(100)]}, 4),
        ({"all": True}, 1),
        ({"connections": ["c="]}, 0),
    ],
)
def test_keeping_costs_a_write_for_each_name_25_in_a_call(
    scene: Scene, to: Any, calls: int
) -> None:
    scene.client.calls.clear()
    scene.send({"to": to, "data": 1})
    assert scene.client.calls.count("batch_write_item") == calls
    items = scene.client.scan(TableName=LIFE.history)["Items"]
    names = to.get("users") or to.get("groups") or (["all"] if "all" in to else [])
    assert len(items) == (len(names) if calls else 0)
    scene.client.calls.clear()
    scene.send({"to": to, "data": 1, "store": False})
    assert "batch_write_item" not in scene.client.calls


def test_the_messages_of_a_request_are_kept_together(scene: Scene) -> None:
    scene.client.calls.clear()
    scene.send(*(to(f"u{number}") for number in range(20)))
    assert scene.client.calls.count("batch_write_item") == 1


def test_what_a_resume_costs(scene: Scene) -> None:
    """Its charge, which tells of her connections; these, and those that ended; a query for each
    stream: her own, everybody's, what was late, and each group's."""
    [had] = scene.send(to())
    scene.say(action="join", group="room-1")
    scene.client.calls.clear()
    scene.resume(had)
    assert scene.client.calls == [
        "transact_write_items",
        "update_item",
        "batch_get_item",
        *["query"] * 6,
    ]
