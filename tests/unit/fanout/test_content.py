"""Queued messages are stored in parts, encrypted where they must be, and lost with their parts."""

import json
import random
from typing import Any

import pytest

from chalicelib.clock import EpochMs
from chalicelib.fanout.content import PART_BYTES, ContentLost, Contents, StoredContent
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.encryption import Encryption, FixedKeys
from chalicelib.protocol.messages import Message
from chalicelib.settings import MasterKey
from chalicelib.store.dynamodb import Store
from tests.support.tables import LATER, TABLES

KEYS = (MasterKey("k1", b"1" * 32),)


def contents(client: Any, keys: tuple[MasterKey, ...] = KEYS) -> Contents:
    return Contents(Store(client, TABLES), Encryption(FixedKeys(keys)))


def message(message_id: str, data: object = "a secret", *, encrypted: bool = False) -> Message:
    return Message(
        id=message_id,
        sender="alice",
        timestamp=EpochMs(1),
        audience=Audience(AudienceKind.USERS, ("bob",)),
        type="message",
        data=data,
        encrypted=encrypted,
    )


def parts(client: Any, request: str, count: int) -> list[bytes]:
    items = [
        client.get_item(TableName=TABLES.messages, Key={"id": {"S": f"content/{request}/{index}"}})
        for index in range(count)
    ]
    assert all(int(item["Item"]["expiresAt"]["N"]) == LATER for item in items)
    return [item["Item"]["part"]["B"] for item in items]


def test_messages_are_loaded_as_they_were_stored(moto: Any, user: str) -> None:
    messages = [message(user), message(f"{user}-2", {"n": 1})]
    stored, size = contents(moto).put(messages, LATER)
    assert stored == StoredContent(parts=1, sealed=False)
    assert size == len(json.dumps([one.to_dict() for one in messages], separators=(",", ":")))
    assert contents(moto).get(user, stored) == messages


def test_large_content_is_stored_in_parts(moto: Any, user: str) -> None:
    data = random.Random(1).randbytes(PART_BYTES).hex()  # compresses to a bit over half
    messages = [message(user, data), message(f"{user}-2", data[::-1])]
    stored, _ = contents(moto).put(messages, LATER)
    assert stored.parts > 1
    assert max(map(len, parts(moto, user, stored.parts))) == PART_BYTES
    assert contents(moto).get(user, stored) == messages


def test_content_with_an_encrypted_message_is_stored_encrypted(moto: Any, user: str) -> None:
    messages = [message(user), message(f"{user}-2", encrypted=True)]
    stored, _ = contents(moto).put(messages, LATER)
    assert stored == StoredContent(parts=1, sealed=True)
    assert b"a secret" not in parts(moto, user, 1)[0]
    assert contents(moto).get(user, stored) == messages


def test_content_is_lost_with_its_master_key(moto: Any, user: str) -> None:
    stored, _ = contents(moto).put([message(user, encrypted=True)], LATER)
    with pytest.raises(ContentLost, match="their key was removed"):
        contents(moto, (MasterKey("k2", b"2" * 32),)).get(user, stored)


def test_content_is_lost_with_any_of_its_parts(moto: Any, user: str) -> None:
    stored, _ = contents(moto).put([message(user)], LATER)
    with pytest.raises(ContentLost, match="a job's messages have expired"):
        contents(moto).get(user, stored._replace(parts=2))
