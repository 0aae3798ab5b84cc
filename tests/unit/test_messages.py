from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.errors import BadRequest
from chalicelib.messages import (
    MAX_FAILED,
    Audience,
    AudienceKind,
    MessageParser,
    Report,
    Result,
)
from chalicelib.ulid import ALPHABET, RANDOM_BITS, Stamp

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
