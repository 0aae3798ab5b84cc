from collections.abc import Sequence
from typing import Any

import pytest

from chalicelib.clock import EpochMs
from chalicelib.rest.user_connections import UserConnections
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient
from tests.support.tables import NOW, connection
from tests.support.world import STALE_AFTER_SECONDS, Herald, World


class Disconnector:
    """Records what it is to disconnect."""

    def __init__(self) -> None:
        self.disconnected: list[str] = []

    def disconnect(self, recipients: Sequence[Recipient], deadline: Deadline) -> None:
        assert not deadline.passed()
        self.disconnected += [recipient.connection_id for recipient in recipients]


@pytest.fixture
def disconnector() -> Disconnector:
    return Disconnector()


@pytest.fixture
def user_connections(life: Any, user: str, disconnector: Any) -> UserConnections:
    """The connections `old` and `new` of `user`, and `other` of another user."""
    herald = Herald(life, World())
    for name, owner, at in (
        ("new", user, EpochMs(NOW + 1)),
        ("old", user, NOW),
        ("other", f"{user}-other", NOW),
    ):
        herald.connections.open(connection(f"{user}-{name}", owner, at=at))
    return UserConnections(
        users=herald.users,
        connections=herald.connections,
        disconnector=disconnector,
        stale_after_seconds=STALE_AFTER_SECONDS,
        now=lambda: EpochMs(NOW + STALE_AFTER_SECONDS * 1000 + 1),
    )


def deadline() -> Deadline:
    return Deadline.after(10)


def test_connections_are_listed_with_the_oldest_first(
    user_connections: UserConnections, user: str
) -> None:
    listed: Any = user_connections.list_all(None, user)["connections"]
    assert [(one["connectionId"], one["status"]) for one in listed] == [
        (f"{user}-old", "stale"),
        (f"{user}-new", "active"),
    ]


def test_all_connections_of_a_user_are_closed(
    user_connections: UserConnections, disconnector: Disconnector, user: str
) -> None:
    user_connections.close_all(None, user, deadline())
    assert disconnector.disconnected == [f"{user}-old", f"{user}-new"]


def test_one_connection_is_closed(
    user_connections: UserConnections, disconnector: Disconnector, user: str
) -> None:
    user_connections.close_one(None, user, f"{user}-new", deadline())
    assert disconnector.disconnected == [f"{user}-new"]


@pytest.mark.parametrize(("tenant", "name"), [(None, "other"), (None, "missing"), ("acme", "new")])
def test_a_connection_that_is_missing_or_someone_elses_is_left_alone(
    user_connections: UserConnections,
    disconnector: Disconnector,
    user: str,
    tenant: str | None,
    name: str,
) -> None:
    user_connections.close_one(tenant, user, f"{user}-{name}", deadline())
    assert disconnector.disconnected == []
