import json
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.errors import BadRequest, Unavailable
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.messages import Message, MessageParser
from chalicelib.protocol.reports import MAX_FAILED, Interrupted, Queued, Report, Result
from chalicelib.protocol.ulid import ALPHABET, RANDOM_BITS, Stamp, moment_of

NOW = 1_795_477_071_772


def parser() -> MessageParser:
    return MessageParser("alice", Stamp.fresh(NOW), may_encrypt=False)


def message(data: Any = 1, to: Any = None) -> dict[str, Any]:
    return {"to": to or {"users": ["bob"]}, "data": data}


def test_a_message_with_everything() -> None:
    to = {"users": ["b", "c", "b"], "exceptUsers": ["c"], "exceptConnections": ["x"]}
    body = {"to": to, "type": "chat", "data": None, "encrypt": False, "store": True}
    [parsed] = parser().batch(body)
    assert parsed.audience == Audience(
        AudienceKind.USERS, ("b", "c"), frozenset({"c"}), frozenset({"x"})
    )
    assert (parsed.sender, parsed.timestamp, parsed.type, parsed.data) == (
        "alice", NOW, "chat", None,
    )  # fmt: skip


def test_the_type_has_a_default() -> None:
    assert parser().one(message()).type == "message"


def test_without_a_key_nothing_is_accepted_that_asks_for_encryption() -> None:
    with pytest.raises(BadRequest) as refused:
        parser().one({**message(), "encrypt": True})
    assert refused.value.detail == "encrypt: encryption is not available"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values)
def test_any_json_is_a_message_or_a_bad_request(body: Any) -> None:
    try:
        parser().batch(body)
    except BadRequest as refused:
        assert refused.detail


@given(st.lists(st.sampled_from(list(Result)), max_size=300))
def test_a_report_adds_up(results: list[Result]) -> None:
    report = Report("id")
    for index, result in enumerate(results):
        report.add(str(index), "bob", result, "why")
    told: Any = report.to_dict()
    assert told["recipients"] == len(results) == sum(told[result] for result in Result)
    failures = [str(i) for i, result in enumerate(results) if result is not Result.DELIVERED]
    assert [entry["connectionId"] for entry in told["failed"]] == failures[:MAX_FAILED]


def test_the_ids_of_a_request_rise() -> None:
    made = list(islice(Stamp.fresh(NOW).ids(), 100))
    assert made == sorted(set(made))
    assert all(len(ulid) == 26 and set(ulid) <= set(ALPHABET) for ulid in made)
    assert list(islice(Stamp(NOW, 2**RANDOM_BITS - 1).ids(), 2))[1].endswith("0" * 16)


def test_the_same_stamp_gives_the_same_ids() -> None:
    stamp = Stamp.fresh(NOW)
    assert list(islice(stamp.ids(), 9)) == list(islice(stamp.ids(), 9))
    assert next(stamp.ids()) != next(Stamp.fresh(NOW).ids())


def test_a_ulid_begins_with_its_time() -> None:
    # The example of the specification.
    assert next(Stamp.fresh(1469918176385).ids()).startswith("01ARYZ6S41")


HUNDRED = [f"user-{number}" for number in range(100)]


@pytest.mark.parametrize(
    ("to", "detail"),
    [
        ([], "to must be an object"),
        ({}, "to must have exactly one of users, groups, connections, all"),
        (
            {"users": ["a"], "all": True},
            "to must have exactly one of users, groups, connections, all",
        ),
        ({"all": True, "room": 1}, "to.room is not a known field"),
        ({"all": False}, "to.all must be true"),
        ({"all": 1}, "to.all must be true"),
        ({"users": []}, "to.users must be a list of 1 to 100 names"),
        ({"groups": "abc"}, "to.groups must be a list of 1 to 100 names"),
        ({"connections": [*HUNDRED, "b"]}, "to.connections must be a list of 1 to 100 names"),
        ({"users": ["a", 1]}, "to.users[1] must be a string of 1 to 128 characters"),
        ({"users": [[1]]}, "to.users[0] must be a string of 1 to 128 characters"),
        ({"users": [""]}, "to.users[0] must be a string of 1 to 128 characters"),
        ({"users": ["a" * 129]}, "to.users[0] must be a string of 1 to 128 characters"),
        ({"users": ["\ud800"]}, "to.users[0] holds a lone surrogate, which UTF-8 can't carry"),
        ({"users": ["a\udfff"]}, "to.users[0] holds a lone surrogate, which UTF-8 can't carry"),
        ({"all": True, "exceptUsers": 1}, "to.exceptUsers must be a list of 0 to 100 names"),
        (
            {"all": True, "exceptConnections": [None]},
            "to.exceptConnections[0] must be a string of 1 to 128 characters",
        ),
    ],
)
def test_what_is_wrong_with_an_audience_is_named(to: Any, detail: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parser().one({"to": to, "data": 1})
    assert refused.value.detail == detail


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (1, "the body must be an object"),
        ({"data": 1}, "to is missing"),
        ({"to": {"all": True}}, "data is missing"),
        ({**message(), "when": 1}, "when is not a known field"),
        ({**message(), "encrypt": 1}, "encrypt must be true or false"),
        ({**message(), "store": None}, "store must be true or false"),
        ({**message(), "type": ""}, "type must be a string of 1 to 128 characters"),
        ({**message(), "type": "t" * 129}, "type must be a string of 1 to 128 characters"),
        ({**message(), "type": 7}, "type must be a string of 1 to 128 characters"),
        ({**message(), "type": "\udc00"}, "type holds a lone surrogate, which UTF-8 can't carry"),
        ({"messages": 1}, "messages must be a list of 1 to 100 messages"),
        ({"messages": []}, "messages must be a list of 1 to 100 messages"),
        ({"messages": [message()] * 101}, "messages must be a list of 1 to 100 messages"),
        ({"messages": [message()], "to": 1}, "to is not a known field"),
        ({"messages": [message(), 1]}, "messages[1] must be an object"),
        ({"messages": [{"to": {}, "data": 1}]}, "messages[0].to must have exactly one of"),
        ({"messages": [{**message(), "x": 1}]}, "messages[0].x is not a known field"),
        ({"messages": [{"to": {"all": True}}]}, "messages[0].data is missing"),
        ({"messages": [{**message(), "encrypt": 1}]}, "messages[0].encrypt must be true or false"),
        (
            {"messages": [{**message(), "encrypt": True}]},
            "messages[0].encrypt: encryption is not available",
        ),
        ({"messages": [{**message(), "type": 7}]}, "messages[0].type must be a string of 1 to"),
        (
            {"messages": [{**message(), "type": "\udc00"}]},
            "messages[0].type holds a lone surrogate",
        ),
    ],
)
def test_what_is_wrong_with_a_message_is_named(body: Any, detail: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parser().batch(body)
    assert refused.value.detail.startswith(detail)


def test_as_much_as_may_be() -> None:
    to = {"users": HUNDRED, "exceptUsers": HUNDRED, "exceptConnections": ["c" * 128]}
    body = {"to": to, "data": 1, "type": "t" * 128}
    messages = parser().batch({"messages": [body] * 100})
    assert len(messages) == 100
    assert messages[0].audience.names == tuple(HUNDRED)
    assert messages[0].audience.except_users == set(HUNDRED)


def test_an_audience_of_all_has_no_names() -> None:
    assert parser().one(message(to={"all": True})).audience == Audience(AudienceKind.ALL)


def test_a_message_is_stored_and_plain_unless_it_says_otherwise() -> None:
    plain = parser().one(message())
    assert (plain.stored, plain.encrypted) == (True, False)
    other = MessageParser("alice", Stamp.fresh(NOW), may_encrypt=True).one(
        {**message(), "store": False, "encrypt": True}
    )
    assert (other.stored, other.encrypted) == (False, True)


def test_a_message_is_kept_as_it_is() -> None:
    to = {"groups": ["g"], "exceptUsers": ["b", "a"], "exceptConnections": ["y", "x"]}
    whole = MessageParser("alice", Stamp.fresh(NOW), may_encrypt=True).one(
        {"to": to, "data": {"n": [1, None]}, "type": "chat", "encrypt": True}
    )
    assert Message.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    assert whole.to_frame_entry().keys() == {"id", "type", "from", "timestamp", "data"}


def test_a_report_names_whom_it_counts() -> None:
    report = Report("id")
    report.add("c", "u", Result.GONE, "gone")
    assert report.to_dict() == {
        "id": "id", "recipients": 1, "delivered": 0, "gone": 1, "stale": 0, "rejected": 0,
        "failed": [{"connectionId": "c", "userId": "u", "reason": "gone"}],
    }  # fmt: skip
    assert Queued("id").to_dict() == {"id": "id", "queued": True}


def test_storage_that_fails_half_way_says_how_far_it_came() -> None:
    reports = [Report("id")]
    interrupted = Interrupted(Unavailable("gone", retry_after=2.0), reports)
    assert (interrupted.detail, interrupted.retry_after) == ("gone", 2.0)
    assert interrupted.reports is reports


def test_a_message_has_its_data_and_an_id_of_its_moment() -> None:
    parsed = parser().one(message(data=[7]))
    assert parsed.data == [7]
    assert moment_of(parsed.id) == NOW


def test_a_hundred_failures_are_named_and_all_are_counted() -> None:
    report = Report("id")
    for number in range(MAX_FAILED + 1):
        report.add(f"c{number}", "u", Result.STALE, "timeout")
    assert (len(report.failed), report.counts[Result.STALE]) == (100, 101)
