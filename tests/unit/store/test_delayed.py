"""References to delayed messages as items."""

import pytest

from chalicelib.clock import EpochMs
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.messages import Message
from chalicelib.store.delayed import (
    DelayedMessage,
    delayed_item,
    delayed_message,
    delayed_position,
    name_digest,
)
from chalicelib.store.schema import delayed_stream

SENT_AT, NOTED_AT = EpochMs(1_700_000_000_000), EpochMs(1_700_000_009_000)
ID = "01HF7YAT0000000000000000ZZ"


def message(audience: Audience) -> Message:
    return Message(id=ID, sender="a", timestamp=SENT_AT, audience=audience, type="t", data=1)


@pytest.mark.parametrize("kind", [AudienceKind.USERS, AudienceKind.GROUPS, AudienceKind.ALL])
@pytest.mark.parametrize("names", [(), ("bob",), ("bob", "carol", "x" * 128)])
def test_a_reference_is_read_as_it_was_written(kind: AudienceKind, names: tuple[str, ...]) -> None:
    item = delayed_item(message(Audience(kind, names)), "acme", NOTED_AT, 7)
    expected = frozenset(map(name_digest, names))
    assert delayed_message(item) == DelayedMessage(ID, kind, expected, 7)


def test_an_excepted_user_is_not_referred_to() -> None:
    audience = Audience(AudienceKind.USERS, ("bob", "carol"), except_users=frozenset({"carol"}))
    reference = delayed_message(delayed_item(message(audience), None, NOTED_AT, 1))
    assert reference.digests == {name_digest("bob")}


def test_references_of_a_tenant_are_in_the_order_in_which_they_were_noted() -> None:
    item = delayed_item(message(Audience(AudienceKind.ALL)), "acme", NOTED_AT, 1)
    assert item["stream"]["S"] == delayed_stream("acme")
    position = item["position"]["S"]
    assert delayed_position(NOTED_AT) <= position < delayed_position(EpochMs(NOTED_AT + 1))
    assert delayed_position(SENT_AT) < position


def test_a_digest_has_eight_bytes_whatever_the_name() -> None:
    assert {len(name_digest(name)) for name in ("", "bob", "\N{PARTY POPPER}" * 64)} == {8}
    assert name_digest("bob") != name_digest("Bob")
