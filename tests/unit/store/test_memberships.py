"""Past memberships: what is recorded, and what a returning user gets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Store
from chalicelib.store.items import HANDSHAKE_SECONDS
from chalicelib.store.memberships import Memberships, joined_since
from chalicelib.store.schema import history_expires_at
from tests.support.tables import HISTORY_SECONDS, LATER, NOW, TABLES, connection, connections_of

Records = Callable[[str], list[Any]]
Since = Callable[..., dict[str, EpochMs]]

AFTER_HANDSHAKE = EpochMs(NOW + HANDSHAKE_SECONDS * 1000 + 1)


@pytest.fixture
def connections(dynamodb: Any) -> Connections:
    return connections_of(dynamodb)


@pytest.fixture
def memberships(dynamodb: Any) -> Memberships:
    return Memberships(Store(dynamodb, TABLES), seconds=HISTORY_SECONDS)


@pytest.fixture
def records(memberships: Memberships) -> Records:
    """Return what returns the groups of each record of a user's past memberships."""

    def groups(user: str) -> list[Any]:
        return [item["groups"] for item in memberships.records(Principal(user, LATER))]

    return groups


@pytest.fixture
def joined(memberships: Memberships) -> Since:
    """Return what returns since when a user with open connections has been in their groups."""

    def since(principal: Principal, connection_ids: list[str], now: EpochMs) -> dict[str, EpochMs]:
        of_open = memberships.of_open(connection_ids)
        return joined_since(principal, of_open, memberships.records(principal), now)

    return since


def test_leaving_refreshing_and_removing_record_past_memberships(
    connections: Connections, records: Records, user: str
) -> None:
    opened = connection(user, user, None, "one", "two", "three")
    connections.open(opened)
    connections.leave(opened, "one", EpochMs(NOW + 1))
    one, two = {"SS": ["one"]}, {"SS": ["two"]}
    assert records(user) == [one]
    left = connections.find(user)
    assert left is not None
    connections.refresh(left, replace(left.principal, groups=("three",)), EpochMs(NOW + 2))
    assert records(user) == [one, two]
    connections.remove(opened.recipient, AFTER_HANDSHAKE, ["three"])
    three = {"M": {"three": {"N": str(NOW)}}}
    assert records(user) == [three, one, two]


def test_a_removal_records_when_a_guessed_group_was_really_joined(
    connections: Connections, records: Records, user: str
) -> None:
    """The guess names the right group, but not when it was joined."""
    opened = connection(user, user)
    connections.open(opened)
    connections.join(opened, "team", EpochMs(NOW + 5))
    assert connections.remove(opened.recipient, AFTER_HANDSHAKE, ["team"])
    assert records(user) == [{"M": {"team": {"N": str(NOW + 5)}}}]


def test_a_returning_user_has_been_in_a_group_since_their_earliest_membership(
    connections: Connections, joined: Since, user: str
) -> None:
    first = connection(f"{user}-1", user, None, "team", "other")
    second = connection(f"{user}-2", user, None, "team", at=EpochMs(NOW + 1000))
    connections.open(first)
    connections.open(second)
    connections.remove(first.recipient, EpochMs(NOW + 2000), first.groups)
    principal = replace(second.principal, groups=("team",))  # no longer allows `other`
    assert joined(principal, [second.connection_id], EpochMs(NOW + 3000)) == {"team": NOW}


def test_leaving_a_group_ends_the_memberships_recorded_before(
    connections: Connections, joined: Since, user: str
) -> None:
    first = connection(f"{user}-1", user, None, "team")
    second = connection(f"{user}-2", user, None, "team", at=EpochMs(NOW + 1000))
    connections.open(first)
    connections.open(second)
    connections.remove(first.recipient, EpochMs(NOW + 2000), first.groups)
    connections.leave(second, "team", EpochMs(NOW + 2001))
    principal = second.principal
    assert joined(principal, [second.connection_id], EpochMs(NOW + 3000)) == {}


def test_a_record_that_ttl_has_not_deleted_yet_does_not_count(
    connections: Connections, joined: Since, user: str
) -> None:
    opened = connection(user, user, None, "team")
    connections.open(opened)
    connections.remove(opened.recipient, NOW, opened.groups)
    expiry = EpochMs(history_expires_at(NOW, HISTORY_SECONDS) * 1000)
    assert joined(opened.principal, [], EpochMs(expiry - 1)) == {"team": NOW}
    assert joined(opened.principal, [], expiry) == {}


def test_nothing_is_recorded_without_a_history(dynamodb: Any, user: str) -> None:
    off = Memberships(Store(dynamodb, TABLES), seconds=0)
    opened = connection(user, user, None, "team").recipient
    assert off.on_end(opened, {"team": NOW}, NOW) == []
    assert off.on_leave(opened, ["team"], NOW) == []
