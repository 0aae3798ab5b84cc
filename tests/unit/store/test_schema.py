"""docs/data-model.md shows the items that Herald really stores: each kind, with every attribute."""

import json
import re
from collections import defaultdict
from typing import Any

import pytest

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal, user_key
from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Parcel
from chalicelib.fanout.progress import Progress, ShardPosition
from chalicelib.fanout.rate import FanoutRateLimiter
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.encryption import Encryption, FixedKeys
from chalicelib.protocol.messages import Message
from chalicelib.protocol.names import MAX_NAME_BYTES
from chalicelib.protocol.reports import Report, Result
from chalicelib.protocol.ulid import Stamp
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.settings import MasterKey
from chalicelib.store import schema
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Store
from chalicelib.store.handshakes import Handshakes
from chalicelib.store.history import History
from chalicelib.store.idempotency import Claim, Idempotency
from chalicelib.store.memberships import Memberships
from chalicelib.store.schema import KEY_ATTRIBUTES, Item, Tables
from chalicelib.store.sweep_progress import SweepProgress
from chalicelib.store.users import Users
from chalicelib.websocket.sweep import Sweeper
from gateway.configuration import PROJECT
from infra import stage
from tests.support.tables import HISTORY_SECONDS, NOW, connection, limiter, recipient, scan
from tests.support.world import LIFE, NEVER, Inline

TYPES = {str: "S", bool: "BOOL", int: "N", dict: "M", list: "list"}
LISTS = {"SS": "list", "L": "list", "B": "S"}  # JSON has one kind of list, and no bytes

Shapes = dict[str, dict[str, set[str]]]
"""The kinds of items; of each, the attributes' names and types."""


def kind_of(table: str, keys: list[str]) -> str:
    """Return the kind of an item, by the parts of its key that all items of the kind share."""
    match table:
        case "users":
            return "users/sweep" if keys[0].startswith("sweep-") else "users"
        case "messages" if "/active/" in keys[0]:
            return "messages/pace/active"
        case "messages":
            return f"messages/{keys[0].partition('/')[0]}"
        case "groups" if keys[0].startswith("*/"):
            return "groups/roster"
        case "history" if keys[0].startswith("was/"):
            return f"history/was/{keys[1].partition('/')[0]}"
        case "history":
            return f"history/{keys[0].partition('/')[0]}"
    return table


def attribute_of(name: str) -> str:
    """Return an attribute's name without the part that differs from item to item."""
    if name[0] in "@+":
        return name[0]
    return re.sub(r"^(at|claim|by|until|closed)\d+$", r"\1", name).partition("/")[0]


class Scene:
    """Herald's parts over empty tables. `observe` notes the shapes of all stored items."""

    def __init__(self, client: Any) -> None:
        self.shapes: Shapes = defaultdict(lambda: defaultdict(set))
        self.client = client
        self.store = Store(client, LIFE)
        self.messages = limiter("messageDue", quota=1000)
        self.connections = Connections(
            self.store,
            handshakes=Handshakes(self.store, limit=100, limiter=limiter("connectDue")),
            message_limiter=self.messages,
            memberships=Memberships(self.store, seconds=HISTORY_SECONDS),
            metrics=Metrics("test"),
        )
        self.encryption = Encryption(FixedKeys((MasterKey("k", b"1" * 32),)))

    def observe(self) -> None:
        for field in Tables._fields:
            for item in scan(self.client, getattr(LIFE, field)):
                keys = [item[name]["S"] for name in KEY_ATTRIBUTES[field]]
                shape = self.shapes[kind_of(field, keys)]
                for name, value in item.items():
                    [type_name] = value
                    shape[attribute_of(name)].add(LISTS.get(type_name, type_name))

    def message(self, kind: AudienceKind, number: int) -> Message:
        names = () if kind is AudienceKind.ALL else ("one",)
        ids = Stamp(
            EpochMs(NOW - 5000), number
        ).ids()  # so old that it is stored as a delayed one, too
        audience = Audience(kind, names)
        return Message(
            id=next(ids),
            sender="alice",
            timestamp=EpochMs(NOW - 5000),
            audience=audience,
            type="chat",
            data={},
        )

    def connect_and_leave(self) -> None:
        opened = connection("c1", "alice", "acme", "team")
        self.connections.open(opened)
        self.connections.join(opened, "room", EpochMs(NOW + 1))
        self.connections.record_activity("c1", opened.principal, NOW, 1)
        self.connections.count_refusal("c1")
        self.connections.handshakes.may_probe(opened.principal.key, NOW)
        users = Users(
            self.store,
            message_limiter=self.messages,
            read_limiter=limiter("readDue"),
            resume_limiter=limiter("resumeDue"),
        )
        users.charge_read(opened.principal, NOW)
        users.charge_resume(opened.principal, NOW)
        self.connections.remove(recipient("c2", "alice", "acme"), NOW)
        self.observe()
        joined = self.connections.find("c1")
        assert joined is not None
        self.connections.leave(joined, "room", EpochMs(NOW + 2))
        self.connections.remove(opened.recipient, EpochMs(NOW + 3))
        self.observe()

    def send(self) -> None:
        history = History(
            self.store,
            seconds=HISTORY_SECONDS,
            encryption=self.encryption,
            writers=Inline(),
            now=lambda: NOW,
        )
        kinds = (AudienceKind.USERS, AudienceKind.GROUPS, AudienceKind.ALL)
        history.append([self.message(kind, number) for number, kind in enumerate(kinds)], "acme")
        keys = Idempotency(self.store)
        claim = keys.claim(Principal("alice", 10**12), "key", {}, Stamp.fresh(NOW))
        assert isinstance(claim, Claim)
        keys.finish(claim, {"messages": []}, 200)
        self.observe()

    def queue(self) -> None:
        progress = Progress(self.store, self.encryption)
        message = self.message(AudienceKind.ALL, 1)
        progress.begin([message], Principal("alice", 10**12, tenant="acme"), 2, "correlation")
        first, second = (ShardPosition(message.id, shard, "") for shard in (0, 1))
        progress.claim(first, "job-1")
        progress.claim(second, "job-2", last_try=NOW)
        report = Report(message.id)
        for result in Result:
            report.add("c1", "alice", result, "timeout")
        progress.advance(first, "job-1", "c1", [report])
        rate = FanoutRateLimiter(self.store, region="eu-west-1", per_second=8000)
        list(
            rate.for_tenant("acme", Deadline.after(0)).throttle(
                [Parcel(recipient("c1", "alice"), (frame_of(b"{}"),))]
            )
        )
        self.observe()

    def sweep(self) -> None:
        for number in range(20):  # several pages in some shard
            self.connections.open(connection(f"swept-{number}", f"user-{number}"))
        scene: Any = self  # stands in for Disconnector and OutcomeRecorder
        Sweeper(
            self.store,
            progress=SweepProgress(self.store, now=lambda: NOW),
            connections=self.connections,
            disconnector=scene,
            outcome_recorder=scene,
            stale_after_seconds=600,
            metrics=Metrics("test"),
            now=lambda: NOW,
            page_items=1,
        ).sweep(Deadline.after(NEVER))
        self.observe()

    def disconnect_expired(self, *_: Any) -> None:
        """Observe the positions that the sweep removes when it is done."""
        self.observe()


def documented() -> Shapes:
    """Return the shapes of the examples in docs/data-model.md."""
    shapes: Shapes = {}
    text = (PROJECT / "docs" / "data-model.md").read_text()
    for section in text.split("\n## ")[1:]:
        table = section.split("\n")[0].strip("`")
        for example in re.findall(r"```json\n(.*?)```", section, re.DOTALL):
            item = json.loads(example)
            kind = kind_of(table, [item[name] for name in KEY_ATTRIBUTES[table]])
            shape = shapes.setdefault(kind, {})
            for name, value in item.items():
                shape.setdefault(attribute_of(name), set()).add(TYPES[type(value)])
    return shapes


def test_the_data_model_documents_every_stored_item(
    life: Any,
) -> None:
    scene = Scene(life)
    scene.connect_and_leave()
    scene.send()
    scene.queue()
    scene.sweep()
    assert documented() == scene.shapes


LONGEST_NAME = "\N{PARTY POPPER}" * 64
LONGEST_USER_KEY = user_key(LONGEST_NAME, LONGEST_NAME)
ULID = "7" + "Z" * 25
LATEST = EpochMs(253_402_300_799_000)

LONGEST_KEYS: dict[str, Item] = {
    "connection_key": schema.connection_key(LONGEST_NAME),
    "user_item_key": schema.user_item_key(LONGEST_USER_KEY),
    "sweep_key": schema.sweep_key("connections", 999),
    "membership_key": schema.membership_key(LONGEST_NAME, LONGEST_NAME, LONGEST_NAME),
    "roster_key": schema.roster_key(LONGEST_NAME, LONGEST_NAME),
    "idempotency_id": {"id": {"S": schema.idempotency_id(LONGEST_USER_KEY, LONGEST_NAME)}},
    "message_key": schema.message_key(LONGEST_NAME),
    "content_id": {"id": {"S": schema.content_id(ULID, 999)}},
    "fanout_clock_key": schema.fanout_clock_key("ap-southeast-1", "f" * 64),
    "fanout_counter_id": {"id": {"S": schema.fanout_counter_id("ap-southeast-1", 999, 999)}},
    "fanout_counter_key": schema.fanout_counter_key("ap-southeast-1", 999, 999),
    "user_stream": {"stream": {"S": schema.user_stream(LONGEST_NAME, LONGEST_NAME)}},
    "group_stream": {"stream": {"S": schema.group_stream(LONGEST_NAME, LONGEST_NAME)}},
    "everyone_stream": {"stream": {"S": schema.everyone_stream(LONGEST_NAME)}},
    "delayed_stream": {"stream": {"S": schema.delayed_stream(LONGEST_NAME)}},
    "past_memberships_stream": {
        "stream": {"S": schema.past_memberships_stream(LONGEST_USER_KEY)},
    },
    "ended_position": {"position": {"S": schema.ended_position(LONGEST_NAME)}},
    "left_position": {"position": {"S": schema.left_position(LATEST, LONGEST_NAME)}},
}
"""The longest key that each function of the schema can return."""


def test_the_longest_keys_are_known() -> None:
    assert len(LONGEST_NAME.encode()) == MAX_NAME_BYTES
    builders = {
        name
        for name, one in vars(schema).items()
        if re.search(r"_(key|id|stream|position)$", name)
        and getattr(one, "__module__", "") == schema.__name__
    }
    assert LONGEST_KEYS.keys() == builders


@pytest.mark.parametrize("key", LONGEST_KEYS.values(), ids=LONGEST_KEYS)
def test_the_longest_keys_are_below_the_limits_of_dynamodb(key: Item) -> None:
    partition_keys = {attributes[0] for attributes in KEY_ATTRIBUTES.values()}
    for attribute, value in key.items():
        is_sort_key = attribute == "position" or (attribute == "connectionId" and len(key) > 1)
        assert is_sort_key or attribute in partition_keys
        limit = aws_limits.SORT_KEY_BYTES if is_sort_key else aws_limits.PARTITION_KEY_BYTES
        assert len(value["S"].encode()) <= limit


def test_the_tables_are_created_with_the_keys_of_the_schema() -> None:
    for logical_id, attributes in zip(stage.TABLES.values(), KEY_ATTRIBUTES.values(), strict=True):
        properties = stage.RESOURCES[logical_id]["Properties"]
        assert [one["AttributeName"] for one in properties["KeySchema"]] == list(attributes)
        assert properties["TimeToLiveSpecification"] == {
            "AttributeName": "expiresAt",
            "Enabled": True,
        }
