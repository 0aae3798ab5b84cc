"""The packing of messages into frames."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwe import decrypt_compact
from joserfc.jwk import OctKey

from chalicelib.auth.principal import user_key
from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import MAX_FRAME_BYTES, Framer
from chalicelib.errors import PayloadTooLarge
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.encryption import Encrypter, Encryption, FixedKeys
from chalicelib.protocol.messages import Message
from chalicelib.settings import MasterKey
from tests.support.strategies import json_values

FRAME_BYTES = 32 * 1024
MASTER_KEY = MasterKey("2026-11", b"m" * 32)


def message(data: Any, name: str = "id", *, encrypted: bool = False) -> Message:
    return Message(
        id=name,
        sender="alice",
        timestamp=EpochMs(1),
        audience=Audience(AudienceKind.ALL),
        type="t",
        data=data,
        encrypted=encrypted,
    )


class CountingEncryption(Encryption):
    """Counts its operations."""

    operations = 0

    def encrypter(self) -> Encrypter:
        counter = self

        class Counting(Encrypter):
            def encrypt(self, plaintext: bytes, user_key: str) -> str:
                counter.operations += 1
                return super().encrypt(plaintext, user_key)

        return Counting(super().encrypter().master_key)


def framer(messages: list[Message], encryption: Encryption | None = None) -> Framer:
    return Framer(messages, FRAME_BYTES, "acme", encryption or Encryption(FixedKeys([MASTER_KEY])))


def decrypted(entry: Any, user_id: str) -> Any:
    assert entry.pop("encrypted") is True
    [key] = Encryption(FixedKeys([MASTER_KEY])).keys_of(user_key("acme", user_id))
    return json.loads(decrypt_compact(entry["data"], OctKey.import_key({**key})).plaintext or b"")


@given(json_values)
def test_data_is_unchanged_in_a_frame(data: Any) -> None:
    [frame] = framer([message(data)]).frames(1, "bob")
    [entry] = json.loads(frame.body)["messages"]
    assert entry == {"id": "id", "type": "t", "from": "alice", "timestamp": 1, "data": data}


@given(
    st.lists(st.integers(0, 40_000) | st.integers(0, 200), min_size=1, max_size=20),
    st.integers(0),
)
def test_the_selected_messages_are_in_order_in_as_few_frames_as_possible(
    sizes: list[int], selection: int
) -> None:
    messages = [message("x" * size, str(index)) for index, size in enumerate(sizes)]
    frames = framer(messages).frames(selection, "bob")
    framed = [one for frame in frames for one in frame.messages]
    assert framed == [m for index, m in enumerate(messages) if selection >> index & 1]
    for frame, following in zip(frames, (*frames[1:], None), strict=False):
        entries = json.loads(frame.body)["messages"]
        assert [entry["id"] for entry in entries] == [m.id for m in frame.messages]
        assert len(frame.body) <= FRAME_BYTES or len(entries) == 1
        if following is not None:
            first = json.dumps(following.messages[0].to_frame_entry(), separators=(",", ":"))
            assert len(frame.body) + 1 + len(first) > FRAME_BYTES


def test_recipients_of_the_same_messages_share_a_frame() -> None:
    framed = framer([message(1), message(2)])
    assert framed.frames(0b11, "bob")[0] is framed.frames(0b11, "carol")[0]


def test_the_largest_frame_is_128_kb() -> None:
    [frame] = framer([message("")]).frames(1, "bob")
    spare = MAX_FRAME_BYTES - len(frame.body)
    [frame] = framer([message("x" * spare)]).frames(1, "bob")
    assert len(frame.body) == MAX_FRAME_BYTES
    with pytest.raises(PayloadTooLarge, match=f"{MAX_FRAME_BYTES + 1} bytes"):
        framer([message("x" * (spare + 1))])


@given(json_values)
def test_encrypted_data_can_be_decrypted_by_its_recipient(data: Any) -> None:
    framed = framer([message(data, encrypted=True), message("open")])
    for user_id in ("bob", "carol"):
        [frame] = framed.frames(0b11, user_id)
        sealed, opened = json.loads(frame.body)["messages"]
        assert decrypted(sealed, user_id) == data
        assert (opened["data"], "encrypted" in opened) == ("open", False)


def test_a_message_is_encrypted_once_for_each_user() -> None:
    """This holds for any order of connections, and any other messages that each one gets."""
    encryption = CountingEncryption(FixedKeys([MASTER_KEY]))
    framed = framer(
        [message(1, encrypted=True), message(2), message(3, encrypted=True)], encryption
    )
    users = [f"user-{number}" for number in range(500)]
    for selection in (0b111, 0b011, 0b001, 0b010, 0b101):
        for user_id in users:
            for _ in range(3):
                framed.frames(selection, user_id)
    assert encryption.operations == 2 * len(users)


def test_recipients_of_unencrypted_messages_share_a_frame_beside_encrypted_ones() -> None:
    encryption = CountingEncryption(FixedKeys([MASTER_KEY]))
    framed = framer([message(1, encrypted=True), message(2)], encryption)
    assert framed.frames(0b10, "bob")[0] is framed.frames(0b10, "carol")[0]
    assert encryption.operations == 0


def test_the_largest_frame_with_an_encrypted_message_is_128_kb() -> None:
    sizes: dict[int, int] = {}
    for length in range(98_050, 98_200):
        try:
            [frame] = framer([message("x" * length, encrypted=True)]).frames(1, "bob")
        except PayloadTooLarge:
            sizes[length] = 0
        else:
            sizes[length] = len(frame.body)
            assert MAX_FRAME_BYTES - 300 < len(frame.body) <= MAX_FRAME_BYTES
    fitting = [length for length, size in sizes.items() if size]
    assert fitting == list(range(98_050, 98_050 + len(fitting)))
    assert 0 < len(fitting) < len(sizes)
    assert sizes[fitting[-1]] > MAX_FRAME_BYTES - 3


@given(st.lists(st.tuples(st.integers(0, 30_000), st.booleans()), min_size=1, max_size=12))
def test_frames_with_encrypted_messages_are_filled_like_others(
    sizes: list[tuple[int, bool]],
) -> None:
    messages = [
        message("x" * size, str(index), encrypted=encrypted)
        for index, (size, encrypted) in enumerate(sizes)
    ]
    frames = framer(messages).frames((1 << len(messages)) - 1, "bob")
    assert [one for frame in frames for one in frame.messages] == messages
    for frame in frames:
        assert len(frame.body) <= FRAME_BYTES or len(frame.messages) == 1
