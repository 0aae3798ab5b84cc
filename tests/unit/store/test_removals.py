"""The beginning and the end of a connection, with something else between any two of their calls."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from chalicelib.clock import EpochMs
from chalicelib.errors import ConnectionGone, Unavailable
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Store
from chalicelib.store.items import HANDSHAKE_SECONDS, Connection
from chalicelib.store.memberships import Memberships
from tests.support.tables import (
    HISTORY_SECONDS,
    NOW,
    TABLES,
    assert_they_agree,
    connection,
    connections_of,
    empty,
    scan,
)
from tests.support.world import Handler

DURING, AFTER = EpochMs(NOW + 1000), EpochMs(NOW + HANDSHAKE_SECONDS * 1000 + 1)
"""Times at which a connection may be in its handshake, and at which it can't."""
LIMIT = 3
OPENING_CALLS = 3
MOST_CALLS = 5  # of a removal


@pytest.fixture
def client(dynamodb: Any) -> Any:
    empty(dynamodb, TABLES)
    return dynamodb


@pytest.fixture
def connections(client: Any) -> Connections:
    return connections_of(client)


@pytest.fixture(params=[(), ("team",)], ids=["no group", "a group"])
def opened(request: pytest.FixtureRequest, user: str) -> Connection:
    return connection(user, user, "acme", *request.param)


def begin(client: Any, calls: int, act: Callable[[Connections], object]) -> Handler:
    """Start to act in an environment of its own, and stop after so many calls."""
    handler = Handler(client, lambda stopping: act(connections_of(stopping)))
    for _ in range(calls):
        if not handler.done:
            handler.step()
    return handler


def finish(handler: Handler) -> Any:
    while not handler.done:
        handler.step()
    return handler.result


def assert_agreed(client: Any, *ids: str) -> None:
    """Assert that the tables agree, and have exactly these connections."""
    assert {item["connectionId"]["S"] for item in scan(client, TABLES.connections)} == set(ids)
    assert_they_agree(partial(scan, client), TABLES, LIMIT)


def groups_since(client: Any, opened: Connection) -> dict[str, EpochMs]:
    """Return the groups that the user is in when they come back."""
    [user] = scan(client, TABLES.users)
    ids = user.get("connections", {"SS": []})["SS"]
    memberships = Memberships(Store(client, TABLES), seconds=HISTORY_SECONDS)
    return memberships.joined_since(opened.principal, ids, EpochMs(AFTER + 1000))


# --- `$connect`


@pytest.mark.parametrize("calls", range(OPENING_CALLS + 1))
def test_a_disconnect_at_any_moment_of_its_connect_leaves_nothing(
    client: Any, connections: Connections, opened: Connection, calls: int
) -> None:
    connecting = begin(client, calls, lambda some: some.open(opened))
    removed = connections.remove(opened.recipient, DURING, opened.groups)
    finish(connecting)
    is_open = calls == OPENING_CALLS
    assert removed == is_open
    assert is_open or isinstance(connecting.error, ConnectionGone)
    assert_agreed(client)


@pytest.mark.parametrize("calls", range(OPENING_CALLS))
def test_what_a_connect_leaves_that_dies_is_not_tied_and_can_be_removed(
    client: Any, connections: Connections, opened: Connection, calls: int
) -> None:
    begin(client, calls, lambda some: some.open(opened)).crash()
    assert all("connections" not in user for user in scan(client, TABLES.users))
    assert not connections.remove(opened.recipient, AFTER)
    assert_agreed(client)


@pytest.mark.parametrize("calls", range(OPENING_CALLS + 1))
@pytest.mark.parametrize("dies", [False, True])
def test_a_connect_that_comes_twice_opens_one_connection(
    client: Any, connections: Connections, opened: Connection, calls: int, dies: bool
) -> None:
    first = begin(client, calls, lambda some: some.open(opened))
    if dies and not first.done:
        first.crash()
    connections.open(opened)
    if not dies:
        finish(first)
        assert first.error is None
    assert_agreed(client, opened.connection_id)


@pytest.mark.parametrize("calls", range(3))
def test_a_connect_that_comes_again_keeps_what_the_client_has_changed_since(
    client: Any, connections: Connections, user: str, calls: int
) -> None:
    opened = connection(user, user, "acme", "team")
    connections.open(opened)
    again = begin(client, calls, lambda some: some.open(opened))
    connections.join(opened, "room", EpochMs(NOW + 1))
    connections.leave(opened, "team", EpochMs(NOW + 2))
    finish(again)
    assert again.error is None
    found = connections.find(user)
    assert found is not None
    assert found.groups == {"room"}
    assert_agreed(client, user)


def test_a_connect_that_comes_again_is_not_opened_after_its_end(
    client: Any, connections: Connections, opened: Connection
) -> None:
    connections.open(opened)
    again = begin(client, 1, lambda some: some.open(opened))  # it has found the connection
    connections.remove(opened.recipient, DURING, opened.groups)
    finish(again)
    assert isinstance(again.error, ConnectionGone)
    assert_agreed(client)


def test_a_handshake_that_took_too_long_is_taken_back(
    client: Any, opened: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = connections_of(client)
    monkeypatch.setattr(connections.handshakes, "now", lambda: AFTER)
    with pytest.raises(Unavailable, match="took too long"):
        connections.open(opened)
    assert_agreed(client)


# --- The end


@pytest.mark.parametrize("now", [DURING, AFTER], ids=["young", "old"])
@pytest.mark.parametrize("guess", [(), ("team",)], ids=["no guess", "a guess"])
@pytest.mark.parametrize("calls", range(MOST_CALLS + 1))
def test_one_of_two_removals_at_once_counts_the_end(
    client: Any,
    connections: Connections,
    opened: Connection,
    calls: int,
    guess: tuple[str, ...],
    now: EpochMs,
) -> None:
    connections.open(opened)
    first = begin(client, calls, lambda some: some.remove(opened.recipient, now, guess))
    second = connections.remove(opened.recipient, now)
    assert [finish(first), second].count(True) == 1
    assert_agreed(client)


@pytest.mark.parametrize("now", [DURING, AFTER], ids=["young", "old"])
@pytest.mark.parametrize("calls", range(MOST_CALLS))
def test_a_removal_that_dies_loses_no_membership_and_the_next_one_ends_it(
    client: Any, connections: Connections, opened: Connection, calls: int, now: EpochMs
) -> None:
    connections.open(opened)
    expected = dict.fromkeys(opened.groups, NOW)
    dying = begin(client, calls, lambda some: some.remove(opened.recipient, now, opened.groups))
    if not dying.done:
        dying.crash()
    assert groups_since(client, opened) == expected
    connections.remove(opened.recipient, AFTER)
    assert groups_since(client, opened) == expected
    assert_agreed(client)


@pytest.mark.parametrize("calls", range(MOST_CALLS + 1))
def test_a_group_that_is_joined_at_any_moment_of_the_end_is_left_and_recorded(
    client: Any, connections: Connections, user: str, calls: int
) -> None:
    opened = connection(user, user, "acme", "team", "room")
    opened = Connection(
        user,
        opened.principal,
        opened.endpoint,
        connected_at=NOW,
        timestamp=NOW,
        groups=frozenset({"team"}),
    )
    connections.open(opened)
    removing = begin(client, calls, lambda some: some.remove(opened.recipient, AFTER, ["team"]))
    expected = {"team": NOW}
    try:
        connections.join(opened, "room", EpochMs(NOW + 1))
        expected["room"] = EpochMs(NOW + 1)
    except ConnectionGone:
        pass
    assert finish(removing) is True
    assert groups_since(client, opened) == expected
    assert_agreed(client)


@pytest.mark.parametrize("calls", range(MOST_CALLS + 1))
def test_a_group_that_is_left_and_joined_again_at_any_moment_of_the_end_is_left(
    client: Any, connections: Connections, user: str, calls: int
) -> None:
    """The groups are the same, and so is the time at which they were joined."""
    opened = connection(user, user, "acme", "team")
    connections.open(opened)
    for change in (connections.leave, connections.join):
        change(opened, "team", NOW)
    removing = begin(client, calls, lambda some: some.remove(opened.recipient, AFTER, ["team"]))
    try:
        for change in (connections.leave, connections.join):
            change(opened, "team", NOW)
    except ConnectionGone:
        pass
    assert finish(removing) is True
    assert_agreed(client)


@pytest.mark.parametrize("calls", range(MOST_CALLS + 1))
def test_a_token_that_is_refreshed_at_any_moment_of_the_end_leaves_nothing(
    client: Any, connections: Connections, opened: Connection, calls: int
) -> None:
    connections.open(opened)
    groups = opened.groups
    removing = begin(client, calls, lambda some: some.remove(opened.recipient, AFTER, groups))
    with suppress(ConnectionGone):
        connections.refresh(opened, opened.principal, NOW)
    assert finish(removing) is True
    assert_agreed(client)


def test_a_tie_whose_connection_expired_is_removed_with_its_roster_entry_and_counted(
    client: Any, opened: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics("test")
    connections = connections_of(client, metrics=metrics)
    connections.open(opened)
    for group in opened.groups:
        connections.leave(opened, group, NOW)
    client.delete_item(
        TableName=TABLES.connections, Key={"connectionId": {"S": opened.connection_id}}
    )
    assert connections.untie(opened.recipient, EpochMs(AFTER))
    assert not connections.untie(opened.recipient, EpochMs(AFTER))
    metrics.flush()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    counts = [line["ConnectionsClosed"] for line in printed if "ConnectionsClosed" in line]
    durations = [line["ConnectionDuration"] for line in printed if "ConnectionDuration" in line]
    assert (counts, durations) == ([[1.0]], [[float(AFTER - NOW)]])
    assert_agreed(client)
