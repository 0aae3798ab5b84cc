"""Connections and recipients as values and as items."""

from dataclasses import replace

from chalicelib.clock import EpochMs
from chalicelib.store.items import (
    HANDSHAKE_SECONDS,
    Connection,
    Status,
    joined_at,
    recipients_of,
    stored_recipient,
)
from chalicelib.store.schema import JOINED_PREFIX, MAX_CONNECTION_SECONDS, REACH_PREFIX
from tests.support.tables import LATER, NOW, connection, recipient


def test_a_silent_connection_is_stale_without_a_write() -> None:
    opened = connection("c", "alice")
    assert opened.status_at(EpochMs(NOW + 600_000), 600) is Status.ACTIVE
    assert opened.status_at(EpochMs(NOW + 600_001), 600) is Status.STALE
    assert replace(opened, status=Status.STALE).status_at(NOW, 600) is Status.STALE


def test_an_item_holds_the_whole_connection() -> None:
    opened = connection("c", "alice", "acme", "team")
    assert Connection.from_item(opened.to_item()) == opened


def test_a_connection_and_its_membership_reach_the_same_recipient() -> None:
    opened = connection("c", "alice", "acme", "team")
    assert stored_recipient(opened.to_item()) == opened.recipient
    assert stored_recipient(opened.membership("team")) == opened.recipient


def test_a_users_connections_are_ordered_by_age() -> None:
    young, old = connection("a", "alice", at=EpochMs(NOW + 1)), connection("b", "alice")
    user = {
        "connections": {"SS": ["a", "b", "lost"]},
        REACH_PREFIX + "a": young.recipient.reach(),
        REACH_PREFIX + "b": old.recipient.reach(),
    }
    assert recipients_of(user, "alice", None) == [old.recipient, young.recipient]


def test_a_group_without_a_time_of_its_own_was_joined_as_the_connection_opened() -> None:
    item = connection("c", "alice", None, "own", "later").to_item()
    item[JOINED_PREFIX + "later"] = {"N": str(NOW + 5)}
    assert joined_at(item) == {"own": NOW, "later": NOW + 5}


def test_a_handshake_and_a_connection_have_a_longest_duration() -> None:
    opened = recipient("c", "alice")
    assert opened.may_be_in_handshake(EpochMs(NOW + HANDSHAKE_SECONDS * 1000 - 1))
    assert not opened.may_be_in_handshake(EpochMs(NOW + HANDSHAKE_SECONDS * 1000))
    assert not opened.is_outlived(EpochMs(NOW + MAX_CONNECTION_SECONDS * 1000))
    assert opened.is_outlived(EpochMs(NOW + MAX_CONNECTION_SECONDS * 1000 + 1))


def test_rest_shows_the_earlier_of_the_ends_of_token_and_connection() -> None:
    opened = connection("c", "alice")
    shown = opened.to_dict(NOW, 600)
    assert shown["expiresAt"] == LATER * 1000
    lasting = replace(opened, principal=replace(opened.principal, expires_at=LATER + 10**6))
    assert lasting.to_dict(NOW, 600)["expiresAt"] == NOW + MAX_CONNECTION_SECONDS * 1000
