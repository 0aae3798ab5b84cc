"""Connections and recipients as values and as items."""

from dataclasses import replace

import pytest

from chalicelib.clock import EpochMs
from chalicelib.store.items import (
    HANDSHAKE_SECONDS,
    Connection,
    Status,
    joined_at,
    recipients_of,
    stored_recipient,
)
from chalicelib.store.schema import (
    ACTIVITY_PREFIX,
    JOINED_PREFIX,
    MAX_CONNECTION_SECONDS,
    REACH_PREFIX,
)
from tests.support.tables import LATER, NOW, connection, recipient


def test_a_silent_connection_is_stale_without_a_write() -> None:
    opened = connection("c", "alice")
    assert opened.status_at(EpochMs(NOW + 600_000), 600) is Status.ACTIVE
    assert opened.status_at(EpochMs(NOW + 600_001), 600) is Status.STALE


@pytest.mark.parametrize(
    ("failed_at", "status"),
    [(None, Status.ACTIVE), (NOW - 1, Status.ACTIVE), (NOW, Status.STALE), (NOW + 1, Status.STALE)],
)
def test_a_connection_is_stale_from_a_failed_delivery_until_its_next_activity(
    failed_at: EpochMs | None, status: Status
) -> None:
    opened = replace(connection("c", "alice"), stale_at=failed_at)
    assert opened.status_at(EpochMs(NOW + 2), 600) is status


def test_the_later_of_two_notes_is_the_last_activity() -> None:
    opened = connection("c", "alice")
    for noted, expected in ((NOW - 1, NOW), (NOW + 1, NOW + 1)):
        user = {ACTIVITY_PREFIX + "c": {"N": str(noted)}, ACTIVITY_PREFIX + "d": {"N": str(LATER)}}
        assert opened.with_activity(user) == replace(opened, timestamp=EpochMs(expected))
    assert opened.with_activity({}) == opened


def test_an_item_holds_the_whole_connection() -> None:
    opened = connection("c", "alice", "acme", "team")
    for one in (opened, replace(opened, stale_at=EpochMs(NOW + 1))):
        assert Connection.from_item(one.to_item()) == one


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
