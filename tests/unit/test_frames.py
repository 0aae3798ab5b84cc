"""Which messages travel together."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.errors import PayloadTooLarge
from chalicelib.frames import MAX_FRAME_BYTES, Framer
from chalicelib.messages import Audience, AudienceKind, Message
from tests.unit.test_messages import json_values

FRAME_BYTES = 32 * 1024


def message(data: Any, name: str = "id") -> Message:
    return Message(name, "alice", 1, Audience(AudienceKind.ALL), "t", data)


@given(json_values)
def test_any_data_arrives_as_it_was(data: Any) -> None:
    [frame] = Framer([message(data)], FRAME_BYTES).frames(1)
    [entry] = json.loads(frame.body)["messages"]
    assert entry == {"id": "id", "type": "t", "from": "alice", "timestamp": 1, "data": data}


@given(
    st.lists(st.integers(0, 40_000) | st.integers(0, 200), min_size=1, max_size=20),
    st.integers(0),
)
def test_frames_carry_what_is_selected_in_order_and_are_as_few_as_can_be(
    sizes: list[int], selection: int
) -> None:
    messages = [message("x" * size, str(index)) for index, size in enumerate(sizes)]
    frames = Framer(messages, FRAME_BYTES).frames(selection)
    carried = [name for frame in frames for name in frame.messages]
    assert carried == [m for index, m in enumerate(messages) if selection >> index & 1]
    for frame, following in zip(frames, (*frames[1:], None), strict=False):
        entries = json.loads(frame.body)["messages"]
        assert [entry["id"] for entry in entries] == [m.id for m in frame.messages]
        assert len(frame.body) <= FRAME_BYTES or len(entries) == 1
        if following is not None:
            first = json.dumps(following.messages[0].to_frame_entry(), separators=(",", ":"))
            assert len(frame.body) + 1 + len(first) > FRAME_BYTES


def test_a_frame_is_built_once_for_all_who_get_it() -> None:
    framer = Framer([message(1), message(2)], FRAME_BYTES)
    assert framer.frames(0b11)[0] is framer.frames(0b11)[0]


def test_the_largest_frame_is_128_kb() -> None:
    [frame] = Framer([message("")], FRAME_BYTES).frames(1)
    spare = MAX_FRAME_BYTES - len(frame.body)
    [frame] = Framer([message("x" * spare)], FRAME_BYTES).frames(1)
    assert len(frame.body) == MAX_FRAME_BYTES
    with pytest.raises(PayloadTooLarge, match=f"{MAX_FRAME_BYTES + 1} bytes"):
        Framer([message("x" * (spare + 1))], FRAME_BYTES)
