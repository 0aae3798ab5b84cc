"""What opening a connection costs, and that every attempt is charged, over both emulators."""

from itertools import count
from typing import Any

import pytest

from chalicelib.auth.principal import user_key
from chalicelib.clock import EpochMs
from chalicelib.errors import ConnectionGone, RateLimited
from chalicelib.store.dynamodb import Store
from chalicelib.store.handshakes import Handshakes, LimitReached
from chalicelib.store.items import HANDSHAKE_SECONDS, Connection
from chalicelib.store.rate_limits import Rate
from chalicelib.store.schema import CONNECT_RATE_ATTRIBUTE
from tests.support.tables import (
    NOW,
    TABLES,
    UNLIMITED,
    Counted,
    Remembering,
    connection,
    connections_of,
    limiter,
    recipient,
)

LIMIT = 2
AFTER_HANDSHAKE = EpochMs(NOW + HANDSHAKE_SECONDS * 1000 + 1)
GROUPS = tuple(f"group-{number}" for number in range(50))
ENTRIES = 1 + len(GROUPS)
"""The roster entry and the memberships of a connection, which take three batches."""
NUMBERS = count(LIMIT)
OPENED = (5, 2 + ENTRIES + 1)
"""The calls and the write units of opening a connection in as many groups as allowed. Its item is
in an index, too."""
TAKEN_BACK = (5, 1 + ENTRIES + 2)
"""Those of taking it back."""


class Metered(Counted):
    """A client that adds up the write units, all items being smaller than a kilobyte.

    A cancelled transaction and a failed condition consume as much as those that succeed. Of the
    connections table, an index has each item, too.
    """

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.units = 0

    def __getattr__(self, operation: str) -> Any:
        call = super().__getattr__(operation)

        def metered(**parameters: Any) -> Any:
            table = parameters.get("TableName")
            batch = parameters.get("RequestItems", {})
            written = sum(len(requests) for requests in batch.values())
            if operation in Remembering.READS:
                return call(**parameters)
            self.units += 2 * len(parameters.get("TransactItems", ())) or written or 1
            answer = call(**parameters)
            indexed = table == TABLES.connections or TABLES.connections in batch
            self.units += indexed and operation != "update_item"
            return answer

        return metered

    def spent(self) -> tuple[int, int]:
        """Return the calls and the write units since the last time."""
        spent = len(self.calls), self.units
        self.calls.clear()
        self.units = 0
        return spent


def total(*costs: tuple[int, int]) -> tuple[int, int]:
    """Return the sum of calls and write units."""
    return sum(calls for calls, _ in costs), sum(units for _, units in costs)


@pytest.fixture
def client(dynamodb: Any) -> Metered:
    return Metered(dynamodb)


def handshakes_of(client: Any, connects: Rate = UNLIMITED) -> Handshakes:
    return Handshakes(
        Store(client, TABLES), limit=LIMIT, limiter=limiter(CONNECT_RATE_ATTRIBUTE, connects)
    )


def attempt(user: str, number: int, at: int = 0) -> Connection:
    return connection(f"{user}-{number}", user, None, *GROUPS, at=EpochMs(NOW + at))


def another(user: str, at: int = 0) -> Connection:
    """Return a connection with an id of its own, as each handshake has."""
    return attempt(user, next(NUMBERS), at)


def fill(client: Metered, handshakes: Handshakes, user: str) -> None:
    """Open as many connections as allowed."""
    for number in range(LIMIT):
        handshakes.open(attempt(user, number))
    client.spent()


def test_an_accepted_handshake_takes_three_calls_and_four_units(client: Metered, user: str) -> None:
    handshakes_of(client).open(connection(user, user))
    assert client.calls == ["put_item", "batch_write_item", "update_item"]
    assert client.spent() == (3, 4)


def test_each_group_of_a_handshake_is_one_more_unit(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client)
    for number in range(LIMIT):
        handshakes.open(attempt(user, number))
        assert client.spent() == OPENED


@pytest.mark.parametrize("groups", [0, 1, 23])
def test_a_handshake_and_its_end_take_eight_units_without_groups(
    client: Metered, user: str, groups: int
) -> None:
    """With groups, the item is read, and the past memberships are recorded."""
    connections = connections_of(client)
    opened = connection(user, user, None, *GROUPS[:groups])
    connections.open(opened)
    assert client.spent() == (3, 4 + groups)
    assert connections.remove(opened.recipient, AFTER_HANDSHAKE, GROUPS[:groups])
    if groups:
        assert client.calls == ["get_item", "batch_write_item", "delete_item", "update_item"]
        assert client.spent() == (4, 4 + 1 + groups)
    else:
        assert client.calls == ["delete_item", "batch_write_item", "update_item"]
        assert client.spent() == (3, 4)


def test_the_end_of_a_handshake_that_has_just_begun_takes_one_unit_more(
    client: Metered, user: str
) -> None:
    connections = connections_of(client)
    opened = connection(user, user)
    connections.open(opened)
    client.spent()
    assert connections.remove(opened.recipient, NOW)
    assert client.spent() == (4, 5)


def test_the_first_refusal_is_taken_back_and_each_further_one_costs_a_unit(
    client: Metered, user: str
) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    for expected in (total(OPENED, (1, 1), TAKEN_BACK), (1, 1), (1, 1)):
        with pytest.raises(LimitReached):
            handshakes.open(another(user))
        assert client.spent() == expected


def test_a_refusal_over_the_rate_costs_nothing(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client, Rate.per_minute(LIMIT + 2))
    fill(client, handshakes, user)
    for _ in range(2):
        with pytest.raises(LimitReached):
            handshakes.open(another(user))
    client.spent()
    for _ in range(100):
        with pytest.raises(RateLimited):
            handshakes.open(another(user))
    assert client.spent() == (0, 0)


def test_the_first_refusal_elsewhere_is_taken_back_if_the_rate_is_used_up(
    client: Metered, user: str
) -> None:
    rate = Rate.per_minute(LIMIT)
    fill(client, handshakes_of(client, rate), user)
    elsewhere = handshakes_of(client, rate)
    for expected in (total(OPENED, TAKEN_BACK), (0, 0)):
        with pytest.raises(RateLimited):
            elsewhere.open(another(user))
        assert client.spent() == expected


def test_a_refusal_over_the_rate_costs_a_unit_where_it_is_known_no_longer(
    client: Metered, user: str
) -> None:
    """Another environment has taken the unit that came back meanwhile."""
    rate = Rate.per_minute(LIMIT)
    one, other = handshakes_of(client, rate), handshakes_of(client, rate)
    fill(client, one, user)
    for environment in (one, other):
        with pytest.raises(RateLimited):
            environment.open(another(user))
    with pytest.raises(LimitReached):
        one.open(another(user, at=30_000))
    client.spent()
    with pytest.raises(RateLimited):
        other.open(another(user, at=30_000))
    assert client.spent() == (1, 1)


def test_a_user_who_was_refused_connects_as_soon_as_there_is_room(
    client: Metered, user: str
) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    with pytest.raises(LimitReached):
        handshakes.open(another(user))
    connections_of(client).remove(recipient(f"{user}-0", user), NOW, GROUPS)
    client.spent()
    handshakes.open(another(user))
    assert client.spent() == total((1, 1), OPENED)
    connections_of(client).remove(recipient(f"{user}-1", user), NOW, GROUPS)
    client.spent()
    handshakes.open(attempt(user, 10))  # the refusal is forgotten
    assert client.spent() == OPENED


def test_an_attempt_that_was_charged_is_not_charged_again(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client, Rate.per_minute(LIMIT + 1))
    fill(client, handshakes, user)
    begun = handshakes.attempt(attempt(user, 9))
    with pytest.raises(LimitReached):
        begun.open()
    connections_of(client).remove(recipient(f"{user}-0", user), NOW, GROUPS)
    client.spent()
    begun.open()
    assert client.spent() == (1, 1)  # all but the tie is stored
    with pytest.raises(RateLimited):
        handshakes.open(attempt(user, 10))


def test_a_charged_attempt_still_needs_room(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    begun = handshakes.attempt(attempt(user, 9))
    for _ in range(2):
        with pytest.raises(LimitReached):
            begun.open()


@pytest.mark.parametrize("refused_before", [False, True])
def test_opening_an_open_connection_again_changes_nothing(
    client: Metered, user: str, refused_before: bool
) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    if refused_before:
        with pytest.raises(LimitReached):
            handshakes.open(another(user))
    handshakes.open(attempt(user, 0))


def test_attempts_whose_client_has_left_are_charged(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client, Rate.per_minute(2))
    left = attempt(user, 1)
    connections_of(client).remove(left.recipient, NOW)
    client.spent()
    for expected in (total(OPENED, (1, 1), TAKEN_BACK), (1, 1)):
        with pytest.raises(ConnectionGone):
            handshakes.open(left)
        assert client.spent() == expected
    with pytest.raises(RateLimited):
        handshakes.open(left)
    assert client.spent() == (0, 0)


def test_an_attempt_that_opens_nothing_is_charged(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client, Rate.per_minute(1))
    key = user_key(None, user)
    assert CONNECT_RATE_ATTRIBUTE in handshakes.charge(key, NOW)
    assert client.spent() == (1, 1)
    with pytest.raises(RateLimited):
        handshakes.charge(key, NOW)
    with pytest.raises(RateLimited):
        handshakes.open(attempt(user, 1))
    assert client.spent() == (0, 0)


def test_a_limited_number_of_refused_users_is_remembered(client: Metered, user: str) -> None:
    store = Store(client, TABLES)  # type: ignore[arg-type]
    handshakes = Handshakes(store, limit=1, limiter=limiter("connectDue"), cached_users=1)
    names = (f"{user}-a", f"{user}-b")
    for name in names:
        handshakes.open(connection(f"{name}-1", name))
        with pytest.raises(LimitReached):
            handshakes.open(connection(f"{name}-2", name))
    for name, calls in zip(reversed(names), (1, 7), strict=True):
        client.spent()
        with pytest.raises(LimitReached):
            handshakes.open(connection(f"{name}-3", name))
        assert client.spent()[0] == calls


def test_a_user_at_the_limit_is_probed_once_a_minute(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client)
    key = user_key(None, user)
    assert handshakes.may_probe(key, NOW)
    assert not handshakes.may_probe(key, EpochMs(NOW + 59_999))
    assert handshakes.may_probe(key, EpochMs(NOW + 60_001))


def test_a_refusal_says_when_the_user_was_last_probed(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    key = user_key(None, user)
    handshakes.may_probe(key, NOW)
    with pytest.raises(LimitReached) as reached:
        handshakes.open(another(user))
    client.spent()
    assert not handshakes.may_probe(key, EpochMs(NOW + 60_000), reached.value.probed_at)
    assert client.spent() == (0, 0)
    assert handshakes.may_probe(key, EpochMs(NOW + 60_001), reached.value.probed_at)
