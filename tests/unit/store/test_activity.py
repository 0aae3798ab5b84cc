"""The activity of clients, over both emulators of DynamoDB."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from chalicelib.auth.principal import Principal, Scope, user_key
from chalicelib.clock import EpochMs
from chalicelib.errors import ConnectionGone, QuotaExceeded, RateLimited, Unavailable
from chalicelib.store.activity import ActivityRecorder
from chalicelib.store.connections import Connections
from chalicelib.store.dynamodb import Store
from chalicelib.store.items import Connection, connection_ids
from chalicelib.store.rate_limits import Rate, RateLimit, UserRateLimiter
from chalicelib.store.schema import RESUME_RATE_ATTRIBUTE, connection_key, user_item_key
from tests.support.tables import (
    LATER,
    NOW,
    TABLES,
    Counted,
    connection,
    connections_of,
    limiter,
)

FRAME = ["update_item"]
"""The calls of a frame whose connection is as its environment assumes."""


@pytest.fixture
def client(dynamodb: Any) -> Counted:
    return Counted(dynamodb)


@pytest.fixture
def connections(client: Any) -> Connections:
    return connections_of(client)


@pytest.fixture
def opened(connections: Connections, user: str) -> Connection:
    """An open connection, which has the name of its user."""
    opened = connection(user, user)
    connections.open(opened)
    return opened


def stored(client: Any, connection_id: str) -> Any:
    key = connection_key(connection_id)
    return client.get_item(TableName=TABLES.connections, Key=key, ConsistentRead=True).get("Item")


def user_item(client: Any, user: str) -> Any:
    key = user_item_key(user_key(None, user))
    return client.get_item(TableName=TABLES.users, Key=key, ConsistentRead=True).get("Item")


def refreshed(opened: Connection, **changes: Any) -> Principal:
    return replace(opened.principal, expires_at=LATER + 3600, **changes)


# --- Frames


def test_a_message_takes_one_call_and_so_does_its_refusal(
    client: Any, opened: Connection, user: str
) -> None:
    busy = connections_of(client, messages=Rate.per_second(1, 5)).activity
    client.calls.clear()
    for moment in (0, 10, 20, 30, 40, 50_000):
        busy.record_frame(user, opened.principal, EpochMs(NOW + moment), messages=1)
    assert client.calls == FRAME * 6
    for _ in range(4):
        busy.record_frame(user, opened.principal, EpochMs(NOW + 50_000), messages=1)
    client.calls.clear()
    with pytest.raises(RateLimited):
        busy.record_frame(user, opened.principal, EpochMs(NOW + 50_000), messages=1)
    assert client.calls == []  # the usage is cached
    elsewhere = connections_of(client, messages=Rate.per_second(1, 5)).activity
    with pytest.raises(RateLimited):
        elsewhere.record_frame(user, opened.principal, EpochMs(NOW + 50_000), messages=1)
    assert client.calls == FRAME


def test_a_frame_writes_the_users_item_alone(
    client: Any, connections: Connections, opened: Connection, user: str
) -> None:
    before, user_before = stored(client, user), user_item(client, user)
    recorded = connections.activity.record_frame(user, opened.principal, EpochMs(NOW + 5))
    assert stored(client, user) == before
    assert recorded.user == user_before
    item = user_item(client, user)
    assert item["lastSeen"] == item[f"!{user}"] == {"N": str(NOW + 5)}
    assert connection_ids(recorded.user) == [user]


def test_a_users_item_with_ten_connections_that_all_do_something_is_below_two_kb(
    dynamodb: Any, user: str
) -> None:
    """DynamoDB bills a write for the whole item: one unit for each KB."""
    connections = connections_of(dynamodb, limit=10, quota=1000)
    ten = [
        replace(
            connection(f"L0SM9cOFvHcCIh{number}=", user),
            endpoint="https://abcdefghij.execute-api.eu-central-1.amazonaws.com/production",
        )
        for number in range(10)
    ]
    sizes = []
    for one in ten:
        connections.open(one)
        recorded = connections.activity.record_frame(
            one.connection_id, one.principal, NOW, messages=1
        )
        sizes.append(size_of(recorded.user))
    assert sizes[1] < 1024
    assert sizes[-1] < 2048


def size_of(item: Any) -> int:
    """Return an item's size in bytes.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """

    def sizes() -> Iterator[int]:
        for name, value in item.items():
            yield len(name.encode())
            match value:
                case {"S": text}:
                    yield len(text.encode())
                case {"N": digits}:
                    yield len(digits) // 2 + 2
                case {"SS": texts}:
                    yield sum(len(text.encode()) for text in texts)

    return sum(sizes())


def test_a_frame_is_charged_its_units(client: Any, opened: Connection, user: str) -> None:
    limited = connections_of(client, messages=Rate.per_second(1, 5)).activity
    limited.record_frame(user, opened.principal, NOW, messages=1, units=9)
    with pytest.raises(RateLimited) as refused:
        limited.record_frame(user, opened.principal, NOW)
    assert refused.value.retry_after == pytest.approx(9 - 4)


def test_a_frame_may_have_a_limiter_of_its_own(client: Any, opened: Connection, user: str) -> None:
    activity = connections_of(client, messages=Rate.per_second(1, 1)).activity
    resumes = limiter(RESUME_RATE_ATTRIBUTE, Rate.per_second(1, 2))
    client.calls.clear()
    for _ in range(2):
        activity.record_frame(user, opened.principal, NOW, limiter=resumes)
    with pytest.raises(RateLimited):
        activity.record_frame(user, opened.principal, NOW, limiter=resumes)
    activity.record_frame(user, opened.principal, NOW)  # it was not charged yet
    with pytest.raises(RateLimited):
        activity.record_frame(user, opened.principal, NOW)
    assert client.calls == FRAME * 3


def test_the_messages_of_a_frame_count_towards_the_quota(
    client: Any, opened: Connection, user: str
) -> None:
    limited = connections_of(client, quota=2).activity
    for messages in (2, 0):
        limited.record_frame(user, opened.principal, NOW, messages=messages)
    with pytest.raises(QuotaExceeded):
        limited.record_frame(user, opened.principal, NOW, messages=1)


def test_a_user_is_charged_by_all_environments_together(dynamodb: Any, user: str) -> None:
    """Neither of two environments knows what the other has charged."""
    rate = Rate.per_minute(1)
    one, other = (connections_of(dynamodb, connects=rate, messages=rate) for _ in range(2))
    opened = connection(f"{user}-1", user)
    one.open(opened)
    with pytest.raises(RateLimited):
        other.open(connection(f"{user}-2", user))
    other.open(connection(f"{user}-3", f"{user}-other"))
    one.activity.record_frame(opened.connection_id, opened.principal, NOW)
    with pytest.raises(RateLimited):
        other.activity.record_frame(opened.connection_id, opened.principal, NOW)
    for environment in (one, other):
        elsewhere = f"{user}-3", Principal(f"{user}-other", LATER)
        with pytest.raises(RateLimited) if environment is other else nullcontext():
            environment.activity.record_frame(*elsewhere, NOW)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_frame_on_a_terminated_connection_is_refused_and_writes_nothing(
    client: Any, connections: Connections, opened: Connection, user: str, elsewhere: bool
) -> None:
    connections.activity.record_frame(user, opened.principal, NOW)
    (connections_of(client) if elsewhere else connections).remove(opened.recipient, NOW)
    before = user_item(client, user)
    client.calls.clear()
    with pytest.raises(ConnectionGone):
        connections.activity.record_frame(user, opened.principal, EpochMs(NOW + 1))
    assert client.calls == FRAME
    assert user_item(client, user) == before
    assert not [name for name in before if user in name]


def test_a_frame_of_a_user_without_an_item_is_refused(
    client: Any, connections: Connections, user: str
) -> None:
    with pytest.raises(ConnectionGone) as gone:
        connections.activity.record_frame(user, Principal(user, LATER), NOW)
    assert gone.value.detail == "the connection has ended: connect again"
    assert user_item(client, user) is None


def test_a_frame_of_a_connection_that_is_not_opened_yet_is_refused(
    connections: Connections, opened: Connection, user: str
) -> None:
    with pytest.raises(ConnectionGone):
        connections.activity.record_frame(f"{user}-2", opened.principal, NOW)


class Down:
    """A DynamoDB client that refuses all calls."""

    def __getattr__(self, operation: str) -> Any:
        raise Unavailable("down")


def activity_that_fails_open(client: Any) -> ActivityRecorder:
    limit = RateLimit("messageDue", Rate.per_second(1, 1))
    return ActivityRecorder(
        Store(client, TABLES), message_limiter=UserRateLimiter(limit, fails_open=True)
    )


def test_a_frame_passes_without_storage_if_the_limiter_fails_open(user: str) -> None:
    principal = Principal(user, LATER)
    recorded = activity_that_fails_open(Down()).record_frame(user, principal, NOW)
    assert recorded == (principal, {})


def test_a_frame_with_an_outdated_principal_does_not_pass_if_the_new_one_cannot_be_read(
    dynamodb: Any, connections: Connections, opened: Connection, user: str
) -> None:
    class Unreadable(Counted):
        def get_item(self, **_: Any) -> Any:
            raise Unavailable("down")

    connections.refresh(opened, refreshed(opened), NOW)
    client: Any = Unreadable(dynamodb)
    with pytest.raises(Unavailable):
        activity_that_fails_open(client).record_frame(user, opened.principal, NOW)


# --- Refreshed tokens


def test_a_refreshed_principal_is_cached(
    client: Any, connections: Connections, opened: Connection, user: str
) -> None:
    renewed = refreshed(opened, scopes=frozenset({Scope.MESSAGES_SEND}))
    connections.refresh(opened, renewed, EpochMs(NOW + 1))
    elsewhere = connections_of(client)
    for environment, expected in (
        (connections, FRAME),
        (elsewhere, [*FRAME, "get_item", *FRAME]),
        (elsewhere, FRAME),
    ):
        client.calls.clear()
        assert environment.activity.record_frame(user, opened.principal, NOW).principal == renewed
        assert client.calls == expected


def test_a_principal_that_was_read_after_a_refresh_takes_no_other_call(
    client: Any, connections: Connections, opened: Connection, user: str
) -> None:
    renewed = refreshed(opened)
    connections.refresh(opened, renewed, EpochMs(NOW + 1))
    client.calls.clear()
    elsewhere = connections_of(client).activity
    assert elsewhere.record_frame(user, renewed, NOW).principal == renewed
    assert client.calls == FRAME


def test_the_principals_refreshed_last_are_cached(dynamodb: Any, user: str) -> None:
    client: Any = Counted(dynamodb)
    connections = connections_of(client, cached_connections=2)
    opened = [connection(f"{user}-{number}", user) for number in range(3)]
    for one in opened:
        connections.open(one)
        connections.refresh(one, refreshed(one), NOW)
    client.calls.clear()
    calls = []
    for one in reversed(opened):
        connections.activity.record_frame(one.connection_id, one.principal, NOW)
        calls.append(len(client.calls))
    assert calls == [1, 2, 5]  # the one that is not cached takes three calls


def test_a_refreshed_connection_whose_item_is_gone_has_ended(
    client: Any, connections: Connections, opened: Connection, user: str
) -> None:
    connections.refresh(opened, refreshed(opened), NOW)
    client.delete_item(TableName=TABLES.connections, Key=connection_key(user))
    with pytest.raises(ConnectionGone):
        connections_of(client).activity.record_frame(user, opened.principal, NOW)


class Renewing:
    """A DynamoDB client: before each of its updates, the connection's token is refreshed."""

    def __init__(self, client: Any, opened: Connection) -> None:
        self._client = client
        self._beside = connections_of(client)
        self._opened = opened
        self._numbers = count()

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._client, operation)

    def update_item(self, **parameters: Any) -> Any:
        principal = replace(self._opened.principal, expires_at=LATER + 1 + next(self._numbers))
        self._beside.refresh(self._opened, principal, NOW)
        return self._client.update_item(**parameters)


def test_a_token_that_keeps_changing_raises_unavailable(
    dynamodb: Any, opened: Connection, user: str
) -> None:
    renewing = connections_of(Renewing(dynamodb, opened)).activity
    with pytest.raises(Unavailable) as unavailable:
        renewing.record_frame(user, opened.principal, NOW)
    assert unavailable.value.detail == "the connection is changing too fast"
    assert unavailable.value.retry_after == 1.0


# --- Refused frames


class Frames:
    """Sends one connection's frames to an environment."""

    def __init__(self, client: Any, opened: Connection) -> None:
        self.activity = connections_of(client).activity
        self._of = opened.connection_id, opened.principal.key
        self._opened = opened

    def refuse(self) -> int:
        return self.activity.count_refusal(*self._of)

    def accept(self) -> None:
        self.activity.record_frame(self._of[0], self._opened.principal, NOW)
        self.activity.end_refusals(*self._of)


def test_refused_frames_are_counted_by_all_environments_together(
    client: Any, opened: Connection
) -> None:
    here, elsewhere = Frames(client, opened), Frames(client, opened)
    client.calls.clear()
    assert [environment.refuse() for environment in (here, elsewhere) * 2] == [1, 2, 3, 4]
    assert client.calls == ["update_item"] * 4


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_an_accepted_frame_starts_the_count_again_wherever_it_arrives(
    client: Any, opened: Connection, user: str, where: str
) -> None:
    here, elsewhere = Frames(client, opened), Frames(client, opened)
    for _ in range(2):
        assert [here.refuse() for _ in range(3)] == [1, 2, 3]
        (here if where == "here" else elsewhere).accept()
        assert f"-{user}" not in user_item(client, user)


def test_accepted_frames_take_one_call_each_except_the_first_after_a_refusal(
    client: Any, opened: Connection
) -> None:
    here, elsewhere = Frames(client, opened), Frames(client, opened)

    def calls_of_a_frame(environment: Frames) -> list[str]:
        client.calls.clear()
        environment.accept()
        return list(client.calls)

    assert calls_of_a_frame(here) == FRAME
    here.refuse()
    assert calls_of_a_frame(here) == [*FRAME, "update_item"]
    assert calls_of_a_frame(here) == FRAME
    calls_of_a_frame(elsewhere)
    here.refuse()
    assert calls_of_a_frame(elsewhere) == [*FRAME, *FRAME, "update_item"]
    assert calls_of_a_frame(elsewhere) == FRAME


def test_a_frame_that_will_be_refused_takes_no_call_to_learn_of_earlier_ones(
    client: Any, opened: Connection, user: str
) -> None:
    Frames(client, opened).refuse()
    client.calls.clear()
    connections_of(client).activity.record_frame(user, opened.principal, NOW, refused=True)
    assert client.calls == FRAME


def test_the_refused_frames_of_two_connections_are_counted_apart(
    client: Any, connections: Connections, opened: Connection, user: str
) -> None:
    second = connection(f"{user}-2", user)
    connections.open(second)
    Frames(client, opened).refuse()
    assert Frames(client, second).refuse() == 1
    client.calls.clear()
    Frames(client, second).accept()
    assert Frames(client, opened).refuse() == 2


def test_refusals_are_not_counted_for_a_terminated_connection(
    client: Any, connections: Connections, opened: Connection, user: str
) -> None:
    frames = Frames(client, opened)
    frames.refuse()
    connections.remove(opened.recipient, NOW)
    with pytest.raises(ConnectionGone):
        frames.refuse()
    frames.activity.end_refusals(user, opened.principal.key)
    assert f"-{user}" not in user_item(client, user)
