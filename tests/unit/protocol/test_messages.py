"""The fields of a message, and the errors for invalid ones."""

import json
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.clock import EpochMs
from chalicelib.errors import BadRequest
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.messages import Draft, Message, accept, parse_message, parse_messages
from chalicelib.protocol.ulid import Stamp
from tests.support.strategies import json_values

STAMP = Stamp(EpochMs(1_795_477_071_772), 7)
HUNDRED = [f"user-{number}" for number in range(100)]


def body_of(data: Any = 1, to: Any = None) -> dict[str, Any]:
    return {"to": to or {"users": ["bob"]}, "data": data}


def parsed(body: Any, *, may_encrypt: bool = False) -> Draft:
    return parse_message(body, may_encrypt=may_encrypt)


# --- Messages


def test_a_message_can_have_every_field() -> None:
    to = {"users": ["b", "c", "b"], "exceptUsers": ["c"], "exceptConnections": ["x"]}
    body = {"to": to, "type": "chat", "data": None, "encrypt": False, "store": True}
    audience = Audience(AudienceKind.USERS, ("b", "c"), frozenset({"c"}), frozenset({"x"}))
    assert parse_messages(body, may_encrypt=False) == [Draft(audience, "chat", None)]


def test_the_default_type_is_message() -> None:
    assert parsed(body_of()).type == "message"


def test_a_message_is_stored_and_not_encrypted_by_default() -> None:
    draft = parsed(body_of())
    assert (draft.stored, draft.encrypted) == (True, False)
    other = parsed({**body_of(), "store": False, "encrypt": True}, may_encrypt=True)
    assert (other.stored, other.encrypted) == (False, True)


def test_an_audience_of_all_has_no_names() -> None:
    assert parsed(body_of(to={"all": True})).audience == Audience(AudienceKind.ALL)


def test_a_request_may_reach_every_limit_at_once() -> None:
    to = {"users": HUNDRED, "exceptUsers": HUNDRED, "exceptConnections": ["c" * 128]}
    body = {"to": to, "data": 1, "type": "t" * 128}
    drafts = parse_messages({"messages": [body] * 100}, may_encrypt=False)
    assert len(drafts) == 100
    assert drafts[0].audience.names == tuple(HUNDRED)
    assert drafts[0].audience.except_users == set(HUNDRED)


@given(json_values)
def test_any_json_is_parsed_or_a_bad_request(body: Any) -> None:
    try:
        parse_messages(body, may_encrypt=False)
    except BadRequest as refused:
        assert refused.detail


# --- Accepted messages


def test_accepting_drafts_gives_them_ids_a_sender_and_the_time() -> None:
    drafts = [
        parsed({**body_of(data), "store": False, "encrypt": True}, may_encrypt=True)
        for data in (1, [2])
    ]
    assert accept(drafts, sender="alice", stamp=STAMP) == [
        Message(
            id=message_id,
            sender="alice",
            timestamp=STAMP.now,
            audience=Audience(AudienceKind.USERS, ("bob",)),
            type="message",
            data=data,
            encrypted=True,
            stored=False,
        )
        for message_id, data in zip(islice(STAMP.ids(), 2), (1, [2]), strict=True)
    ]


names = st.lists(st.text(), max_size=3)
any_message = st.builds(
    Message,
    id=st.text(),
    sender=st.text(),
    timestamp=st.integers(min_value=0).map(EpochMs),
    audience=st.builds(
        Audience,
        st.sampled_from(AudienceKind),
        names.map(tuple),
        names.map(frozenset),
        names.map(frozenset),
    ),
    type=st.text(),
    data=json_values,
    encrypted=st.booleans(),
    stored=st.booleans(),
)


@given(any_message)
def test_a_stored_message_is_read_as_it_was(message: Message) -> None:
    assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message
    assert message.to_frame_entry().keys() == {"id", "type", "from", "timestamp", "data"}


def test_only_a_message_that_the_history_may_not_keep_says_so() -> None:
    [kept, lost] = accept(
        [parsed({**body_of(1), "store": store}) for store in (True, False)],
        sender="alice",
        stamp=STAMP,
    )
    assert "stored" not in kept.to_dict()
    assert lost.to_dict()["stored"] is False


# --- Errors

ONE_AUDIENCE = "to must have exactly one of users, groups, connections, all"
TYPE = "must be a string of 1 to 128 characters"
NAME = f"{TYPE}, at most 256 bytes of UTF-8"
SURROGATE = "contains a lone surrogate, which UTF-8 can't encode"
AUDIENCE_FIELDS = "users, groups, connections, all, exceptUsers, exceptConnections"
MESSAGE_FIELDS = "to, type, data, encrypt, store"


@pytest.mark.parametrize(
    ("to", "detail"),
    [
        ([], "to must be an object"),
        ({}, ONE_AUDIENCE),
        ({"users": ["a"], "all": True}, ONE_AUDIENCE),
        ({"all": True, "room": 1}, f"to.room is not a known field; allowed: {AUDIENCE_FIELDS}"),
        ({"all": False}, "to.all must be true"),
        ({"all": 1}, "to.all must be true"),
        ({"users": []}, "to.users must be a list of 1 to 100 strings"),
        ({"groups": "abc"}, "to.groups must be a list of 1 to 100 strings"),
        ({"connections": [*HUNDRED, "b"]}, "to.connections must be a list of 1 to 100 strings"),
        ({"users": ["a", 1]}, f"to.users[1] {NAME}"),
        ({"users": [[1]]}, f"to.users[0] {NAME}"),
        ({"users": [""]}, f"to.users[0] {NAME}"),
        ({"users": ["a" * 129]}, f"to.users[0] {NAME}"),
        ({"groups": ["a", "\N{PARTY POPPER}" * 65]}, f"to.groups[1] {NAME}"),
        ({"connections": ["ü" * 127 + "€"]}, f"to.connections[0] {NAME}"),
        ({"all": True, "exceptUsers": ["€" * 86]}, f"to.exceptUsers[0] {NAME}"),
        ({"all": True, "exceptConnections": ["€" * 86]}, f"to.exceptConnections[0] {NAME}"),
        ({"users": ["\ud800"]}, f"to.users[0] {SURROGATE}"),
        ({"users": ["a\udfff"]}, f"to.users[0] {SURROGATE}"),
        ({"all": True, "exceptUsers": 1}, "to.exceptUsers must be a list of at most 100 strings"),
        ({"all": True, "exceptConnections": [None]}, f"to.exceptConnections[0] {NAME}"),
    ],
)
def test_a_wrong_audience_is_refused_by_the_name_of_its_field(to: Any, detail: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed({"to": to, "data": 1})
    assert refused.value.detail == detail


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (1, "the body must be an object"),
        ({"data": 1}, "to is missing"),
        ({"to": {"all": True}}, "data is missing"),
        ({**body_of(), "when": 1}, f"when is not a known field; allowed: {MESSAGE_FIELDS}"),
        ({**body_of(), "encrypt": 1}, "encrypt must be true or false"),
        ({**body_of(), "encrypt": True}, "encrypt must be false: no encryption key is configured"),
        ({**body_of(), "store": None}, "store must be true or false"),
        ({**body_of(), "type": ""}, f"type {TYPE}"),
        ({**body_of(), "type": "t" * 129}, f"type {TYPE}"),
        ({**body_of(), "type": 7}, f"type {TYPE}"),
        ({**body_of(), "type": "\udc00"}, f"type {SURROGATE}"),
        ({"messages": 1}, "messages must be a list of 1 to 100 messages"),
        ({"messages": []}, "messages must be a list of 1 to 100 messages"),
        ({"messages": [body_of()] * 101}, "messages must be a list of 1 to 100 messages"),
        ({"messages": [body_of()], "to": 1}, "to is not a known field; allowed: messages"),
        ({"messages": [body_of(), 1]}, "messages[1] must be an object"),
        ({"messages": [{"to": {}, "data": 1}]}, f"messages[0].{ONE_AUDIENCE}"),
        (
            {"messages": [{**body_of(), "x": 1}]},
            f"messages[0].x is not a known field; allowed: {MESSAGE_FIELDS}",
        ),
        ({"messages": [{"to": {"all": True}}]}, "messages[0].data is missing"),
        ({"messages": [{**body_of(), "encrypt": 1}]}, "messages[0].encrypt must be true or false"),
        (
            {"messages": [{**body_of(), "encrypt": True}]},
            "messages[0].encrypt must be false: no encryption key is configured",
        ),
        ({"messages": [{**body_of(), "type": 7}]}, f"messages[0].type {TYPE}"),
        ({"messages": [{**body_of(), "type": "\udc00"}]}, f"messages[0].type {SURROGATE}"),
    ],
)
def test_a_wrong_message_is_refused_by_the_name_of_its_field(body: Any, detail: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_messages(body, may_encrypt=False)
    assert refused.value.detail == detail
