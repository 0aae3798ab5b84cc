"""Resume, case by case: messages in doubt, membership, expiry, encryption, sizes and costs."""

import json
from typing import Any

import pytest

from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs
from chalicelib.protocol.encryption import Encryption, FixedKeys
from chalicelib.protocol.messages import accept, parse_message, parse_messages
from chalicelib.protocol.ulid import Stamp, earliest
from chalicelib.runtime.deadlines import Deadline
from chalicelib.settings import MasterKey
from chalicelib.store.dynamodb import Store
from chalicelib.store.history import PAGE_ITEMS, History
from chalicelib.store.schema import user_stream
from tests.support.tables import HISTORY_SECONDS
from tests.support.units import Meter
from tests.support.world import LIFE, NEVER, SCOPES, Herald, Inline, Socket, World

SENDER = Principal("server", 10**12, scopes=SCOPES | {Scope.MESSAGES_BROADCAST})


class Scene(World):
    """Alice connects and disconnects; `frames` has what she received on her last connection."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.client = Meter(client)
        self.herald = Herald(self.client, self, evicts=True)
        self.frames: list[Any] = []
        self.socket = self.connect_alice()

    def arrive(self, connection_id: str, body: bytes) -> None:
        if body and connection_id == self.socket.connection_id:
            self.frames.append(json.loads(body))

    def connect_alice(self) -> Socket:
        self.pass_time(1)
        self.socket = self.connect("alice")
        self.herald.lifecycle.on_connect(self.socket.event())
        self.socket.state = "open"
        self.frames.clear()
        return self.socket

    def disconnect_alice(self) -> None:
        self.socket.state = "closed"
        self.herald.lifecycle.on_disconnect(self.socket.event())

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds

    def say(self, **frame: object) -> Any:
        self.pass_time(1)
        event = self.socket.event(json.dumps(frame))
        self.herald.actions.receive(event, Deadline.after(NEVER))
        return self.frames[-1]

    def send(
        self, *bodies: Any, at: EpochMs | None = None, herald: Herald | None = None
    ) -> list[str]:
        """Send messages in one request that was accepted at `at`; return their ids."""
        self.pass_time(1)
        stamp = Stamp.fresh(EpochMs(self.now) if at is None else at)
        drafts = parse_messages({"messages": [*bodies]}, may_encrypt=True)
        messages = accept(drafts, sender="server", stamp=stamp)
        deadline = Deadline.after(NEVER)
        (herald or self.herald).dispatcher.send(messages, SENDER, deadline)
        return [message.id for message in messages]

    def resume(self, after: str) -> tuple[list[str], Any]:
        """Return the ids that arrive, and the answer."""
        self.frames.clear()
        answer = self.say(action="resume", after=after)
        messages = [message for frame in self.frames[:-1] for message in frame["messages"]]
        return [message["id"] for message in messages], answer


@pytest.fixture
def scene(life: Any) -> Scene:
    return Scene(life)


def to(user: str = "alice", data: object = 1, **more: Any) -> dict[str, Any]:
    return {"to": {"users": [user]}, "data": data, **more}


# --- Messages in doubt


def test_a_message_that_another_environment_sent_just_before_is_in_doubt(scene: Scene) -> None:
    """Alice has `had`. A message that was accepted before it may arrive after it."""
    other = Herald(scene.client, scene)
    [doubtful] = scene.send(to(), herald=other)
    [known] = scene.send(to())
    [had] = scene.send(to())
    assert scene.resume(had) == ([doubtful], {"type": "resumed", "count": 1, "complete": True})
    assert known  # its environment sent it before `had`, so she has it


def test_earlier_messages_of_a_request_are_not_in_doubt(scene: Scene) -> None:
    _, had, after = scene.send(to(), to(), to())
    assert scene.resume(had)[0] == [after]


def test_messages_from_long_before_are_not_in_doubt(scene: Scene) -> None:
    other = Herald(scene.client, scene)
    scene.send(to(), herald=other)
    scene.pass_time(33_000)
    [had] = scene.send(to())
    assert scene.resume(had)[0] == []


def test_messages_of_a_late_second_try_are_found_despite_their_old_ids(scene: Scene) -> None:
    accepted = EpochMs(scene.now)
    scene.pass_time(120_000)
    [had] = scene.send(to())
    scene.disconnect_alice()
    [late] = scene.send(to(), at=accepted)
    scene.connect_alice()
    assert scene.resume(had)[0] == [late]


def test_late_messages_reach_only_their_audience(scene: Scene) -> None:
    accepted = EpochMs(scene.now)
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


def test_a_message_to_several_groups_of_a_user_arrives_once(scene: Scene) -> None:
    scene.say(action="join", group="room-1")
    [had] = scene.send(to())
    [both] = scene.send({"to": {"groups": ["team", "room-1"]}, "data": 1})
    assert scene.resume(had)[0] == [both]


def test_an_excluded_connection_is_excluded_from_its_resume(scene: Scene) -> None:
    [had] = scene.send(to())
    audience = {"users": ["alice"], "exceptConnections": [scene.socket.connection_id]}
    [other] = scene.send({"to": audience, "data": 1})
    assert scene.resume(had)[0] == []
    scene.connect_alice()
    assert scene.resume(had)[0] == [other]


# --- Membership


def room(scene: Scene) -> str:
    [message_id] = scene.send({"to": {"groups": ["room-1"]}, "data": 1})
    return message_id


def test_messages_from_before_a_user_joined_are_not_sent(scene: Scene) -> None:
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
        scene.disconnect_alice()
    missed = room(scene)
    scene.connect_alice()
    scene.say(action="join", group="room-1")
    assert scene.resume(had)[0] == [missed]


def test_a_user_who_left_a_group_gets_nothing_of_it_even_if_another_connection_was_in_it(
    scene: Scene,
) -> None:
    scene.say(action="join", group="room-1")
    [had] = scene.send(to())
    scene.disconnect_alice()
    scene.connect_alice()
    scene.say(action="join", group="room-1")
    scene.say(action="leave", group="room-1")
    room(scene)
    assert scene.resume(had)[0] == []


@pytest.mark.parametrize("groups", [["team"], ["room-1"], ["team", "room-1"]])
def test_a_user_who_joins_again_gets_what_was_sent_after_that(
    scene: Scene, groups: list[str]
) -> None:
    """This holds for a group of the token too, which is normally joined at connect."""
    [had] = scene.send(to())
    for group in groups:
        scene.say(action="join", group=group)
        scene.say(action="leave", group=group)
        scene.send({"to": {"groups": [group]}, "data": 1})
        scene.say(action="join", group=group)
    wanted = scene.send(*({"to": {"groups": [group]}, "data": 1} for group in groups))
    assert scene.resume(had)[0] == wanted
    scene.disconnect_alice()
    scene.connect_alice()
    assert scene.resume(had)[0] == wanted


def test_joining_a_group_twice_changes_nothing(scene: Scene) -> None:
    [had] = scene.send(to())
    scene.say(action="join", group="room-1")
    wanted = [room(scene), scene.send({"to": {"groups": ["team"]}, "data": 1})[0]]
    for group in ("team", "room-1"):
        scene.say(action="join", group=group)
    assert scene.resume(had)[0] == wanted


def test_a_membership_that_ended_long_ago_is_forgotten(scene: Scene) -> None:
    scene.say(action="join", group="room-1")
    scene.disconnect_alice()
    notes = scene.client.scan(TableName=LIFE.history)["Items"]
    [note] = [note for note in notes if note["position"]["S"].startswith("ended/")]
    assert int(note["expiresAt"]["N"]) == scene.now // 1000 + HISTORY_SECONDS + 1
    scene.pass_time((HISTORY_SECONDS + 2) * 1000)  # and TTL has not taken it yet
    [had] = scene.send(to())
    room(scene)
    scene.connect_alice()
    scene.say(action="join", group="room-1")
    assert scene.resume(had)[0] == []


# --- Expiry and encryption


def test_messages_expire_in_the_history(scene: Scene) -> None:
    scene.send(to())
    [item] = scene.client.scan(TableName=LIFE.history)["Items"]
    assert int(item["expiresAt"]["N"]) - scene.now // 1000 - HISTORY_SECONDS in (33, 34)


@pytest.mark.parametrize("over", [1, 40])
def test_expired_messages_are_not_sent_before_ttl_deletes_them(scene: Scene, over: int) -> None:
    accepted = EpochMs(scene.now)
    scene.send(to())
    scene.pass_time((HISTORY_SECONDS + over) * 1000)
    ids, answer = scene.resume(earliest(EpochMs(accepted - 1)))
    assert (ids, answer["complete"]) == ([], False)


def test_a_resume_is_incomplete_if_a_message_in_doubt_has_expired(scene: Scene) -> None:
    [doubtful] = scene.send(to(), herald=Herald(scene.client, scene))
    scene.pass_time(10_000)
    [had] = scene.send(to())
    assert scene.resume(had) == ([doubtful], {"type": "resumed", "count": 1, "complete": True})
    scene.pass_time((HISTORY_SECONDS - 5) * 1000)
    assert scene.resume(had) == ([], {"type": "resumed", "count": 0, "complete": False})
    scene.send(to())
    [had] = scene.send(to())
    assert scene.resume(had) == ([], {"type": "resumed", "count": 0, "complete": True})


def test_an_id_from_the_future_counts_as_one_from_now(scene: Scene) -> None:
    [had] = scene.send(to())
    ids, answer = scene.resume(earliest(EpochMs(scene.now + 10**9)))
    assert (ids, answer["complete"]) == ([had], True)


def test_encrypted_messages_are_stored_encrypted(scene: Scene, life: Any) -> None:
    keys = (MasterKey("k1", b"1" * 32),)
    encryption = Encryption(FixedKeys(keys))
    kept = History(
        Store(life, LIFE),
        seconds=HISTORY_SECONDS,
        encryption=encryption,
        writers=Inline(),
        now=lambda: EpochMs(scene.now),
    )
    draft = parse_message(to(data="a secret", encrypt=True), may_encrypt=True)
    [message] = accept([draft], sender="server", stamp=Stamp.fresh(EpochMs(scene.now)))
    kept.append([message], None)
    [item] = life.scan(TableName=LIFE.history)["Items"]
    assert "packed" not in item
    assert b"a secret" not in item["sealed"]["B"]
    [entry] = kept.read(user_stream(None, "alice"), EpochMs(scene.now - 1))
    assert json.loads(kept.text(entry))["data"] == "a secret"
    assert entry.encrypted

    ids, answer = scene.resume(earliest(EpochMs(scene.now - 1)))  # this Herald lacks the key
    assert (ids, answer["complete"]) == ([], False)


@pytest.mark.parametrize(("size", "frames"), [(10, 3), (5000, 43)])
def test_many_messages_are_sent_in_frames_of_32_kb(scene: Scene, size: int, frames: int) -> None:
    after = earliest(EpochMs(scene.now))
    sent = [
        message_id
        for _ in range(5)
        for message_id in scene.send(*(to(data="x" * size) for _ in range(50)))
    ]
    ids, answer = scene.resume(after)
    assert ids == sent
    assert answer == {"type": "resumed", "count": 250, "complete": True}
    assert all(len(json.dumps(frame)) < 33_000 for frame in scene.frames)
    assert len(scene.frames) - 1 == frames


def test_a_resume_can_be_repeated_after_a_failure(scene: Scene) -> None:
    [had] = scene.send(to())
    scene.send(to())
    scene.trouble = True
    scene.herald.actions.receive(
        scene.socket.event(json.dumps({"action": "resume", "after": had})), Deadline.after(NEVER)
    )
    scene.trouble = False
    assert scene.resume(had)[1]["count"] == 1


# --- DynamoDB calls


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
def test_keeping_a_message_costs_a_write_for_each_name_and_a_call_for_25(
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


def test_the_messages_of_a_request_are_kept_in_one_call(scene: Scene) -> None:
    scene.client.calls.clear()
    scene.send(*(to(f"u{number}") for number in range(20)))
    assert scene.client.calls.count("batch_write_item") == 1


def test_a_resume_takes_four_calls_one_write_unit_and_three_read_units(scene: Scene) -> None:
    """The update is for the frame, the queries are for her own messages, the tenant's, and those of
    her group, which she joined as she connected."""
    [had] = scene.send(to())
    scene.disconnect_alice()
    missed = [scene.send(to())[0], scene.send({"to": {"groups": ["team"]}, "data": 1})[0]]
    scene.connect_alice()
    scene.client.begin()
    assert scene.resume(had)[0] == missed
    assert scene.client.calls == ["update_item", *["query"] * 3]
    assert scene.client.writes == {LIFE.users: 1}
    assert scene.client.reads == {LIFE.history: 3}


def test_a_resume_reads_the_users_connections_if_another_one_is_open(scene: Scene) -> None:
    [had] = scene.send(to())
    scene.connect_alice()
    scene.client.begin()
    scene.resume(had)
    assert scene.client.calls == ["update_item", "batch_get_item", *["query"] * 3]
    assert scene.client.reads == {LIFE.history: 3, LIFE.connections: 1}


def test_a_resume_reads_the_clients_connection_if_it_has_sent_a_frame_before(scene: Scene) -> None:
    [had] = scene.send(to())
    scene.say(action="join", group="room-1")
    scene.client.begin()
    scene.resume(had)
    assert scene.client.calls == ["update_item", "batch_get_item", *["query"] * 4]


def test_a_resume_queries_past_memberships_apart_if_there_are_many_messages(scene: Scene) -> None:
    had = earliest(EpochMs(scene.now))
    scene.say(action="join", group="room-1")
    scene.disconnect_alice()
    sent = [one for _ in range(3) for one in scene.send(*[to()] * (PAGE_ITEMS // 3 + 1))]
    sent.append(room(scene))
    scene.connect_alice()
    scene.client.begin()
    assert scene.resume(had)[0] == sent
    # Her messages, her past memberships, the tenant's, more of hers, and those of two groups.
    assert scene.client.calls == ["update_item", *["query"] * 6]


@pytest.mark.parametrize(("later", "queries"), [(0, 4), (HISTORY_SECONDS + 61, 3)])
def test_a_resume_queries_delayed_messages_if_the_history_may_have_any(
    scene: Scene, later: int, queries: int
) -> None:
    scene.send(to("bob"), at=EpochMs(scene.now - 10_000))
    scene.pass_time(later * 1000)
    [had] = scene.send(to())
    scene.client.begin()
    scene.resume(had)
    assert scene.client.calls == ["update_item", *["query"] * queries]


def test_noting_a_delay_writes_a_reference_and_once_a_minute_the_marker(scene: Scene) -> None:
    for units in (3, 2, 2):
        scene.client.begin()
        scene.send(to(), at=EpochMs(scene.now - 10_000))
        assert scene.client.writes == {LIFE.history: units}


def test_a_resume_is_charged_to_a_rate_of_its_own(scene: Scene) -> None:
    scene.herald = Herald(scene.client, scene, evicts=True, message_rate=0.001, message_burst=1)
    [had] = scene.send(to())
    assert scene.say(action="leave", group="room-1")["type"] == "left"
    assert scene.say(action="leave", group="room-1")["code"] == "rate_limited"
    assert scene.resume(had)[1]["type"] == "resumed"
