"""What opening a connection costs, and that every attempt is charged, over both emulators."""

from typing import Any

import pytest

from chalicelib.auth.principal import user_key
from chalicelib.clock import EpochMs
from chalicelib.errors import ConnectionGone, RateLimited
from chalicelib.store.dynamodb import Store
from chalicelib.store.handshakes import Handshakes, LimitReached
from chalicelib.store.items import Connection
from chalicelib.store.rate_limits import Rate
from chalicelib.store.schema import CONNECT_RATE_ATTRIBUTE
from tests.support.tables import (
    NOW,
    TABLES,
    UNLIMITED,
    Counted,
    connection,
    connections_of,
    limiter,
    recipient,
)

LIMIT = 2
GROUPS = tuple(f"group-{number}" for number in range(50))
WHOLE_TRANSACTION = 2 * (3 + len(GROUPS))
"""The write units of opening a connection in as many groups as allowed."""


class Metered(Counted):
    """A client that adds up the write units, all items being smaller than a kilobyte.

    A cancelled transaction and a failed condition consume as much as those that succeed.
    """

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.units = 0

    def __getattr__(self, operation: str) -> Any:
        call = super().__getattr__(operation)

        def metered(**parameters: Any) -> Any:
            self.units += 2 * len(parameters.get("TransactItems", ())) or 1
            return call(**parameters)

        return metered

    def spent(self) -> tuple[int, int]:
        """Return the calls and the write units since the last time."""
        spent = len(self.calls), self.units
        self.calls.clear()
        self.units = 0
        return spent


@pytest.fixture
def client(dynamodb: Any) -> Metered:
    return Metered(dynamodb)


def handshakes_of(client: Any, connects: Rate = UNLIMITED) -> Handshakes:
    return Handshakes(
        Store(client, TABLES), limit=LIMIT, limiter=limiter(CONNECT_RATE_ATTRIBUTE, connects)
    )


def attempt(user: str, number: int, at: int = 0) -> Connection:
    return connection(f"{user}-{number}", user, None, *GROUPS, at=EpochMs(NOW + at))


def fill(client: Metered, handshakes: Handshakes, user: str) -> None:
    """Open as many connections as allowed."""
    for number in range(LIMIT):
        handshakes.open(attempt(user, number))
    client.spent()


def test_an_accepted_handshake_takes_one_call(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client)
    for number in range(LIMIT):
        handshakes.open(attempt(user, number))
        assert client.spent() == (1, WHOLE_TRANSACTION)


def test_the_first_refusal_costs_a_transaction_and_each_further_one_a_unit(
    client: Metered, user: str
) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    for expected in ((2, WHOLE_TRANSACTION + 1), (1, 1), (1, 1)):
        with pytest.raises(LimitReached):
            handshakes.open(attempt(user, 9))
        assert client.spent() == expected


def test_a_refusal_over_the_rate_costs_nothing(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client, Rate.per_minute(LIMIT + 2))
    fill(client, handshakes, user)
    for _ in range(2):
        with pytest.raises(LimitReached):
            handshakes.open(attempt(user, 9))
    client.spent()
    for _ in range(100):
        with pytest.raises(RateLimited):
            handshakes.open(attempt(user, 9))
    assert client.spent() == (0, 0)


def test_the_first_refusal_elsewhere_costs_one_transaction_if_the_rate_is_used_up(
    client: Metered, user: str
) -> None:
    rate = Rate.per_minute(LIMIT)
    fill(client, handshakes_of(client, rate), user)
    elsewhere = handshakes_of(client, rate)
    for expected in ((1, WHOLE_TRANSACTION), (0, 0)):
        with pytest.raises(RateLimited):
            elsewhere.open(attempt(user, 9))
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
            environment.open(attempt(user, 9))
    with pytest.raises(LimitReached):
        one.open(attempt(user, 9, at=30_000))
    client.spent()
    with pytest.raises(RateLimited):
        other.open(attempt(user, 9, at=30_000))
    assert client.spent() == (1, 1)


def test_a_user_who_was_refused_connects_as_soon_as_there_is_room(
    client: Metered, user: str
) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    with pytest.raises(LimitReached):
        handshakes.open(attempt(user, 9))
    connections_of(client).remove(recipient(f"{user}-0", user), NOW, GROUPS)
    client.spent()
    handshakes.open(attempt(user, 9))
    assert client.spent() == (2, WHOLE_TRANSACTION + 1)
    connections_of(client).remove(recipient(f"{user}-1", user), NOW, GROUPS)
    client.spent()
    handshakes.open(attempt(user, 10))  # the refusal is forgotten
    assert client.spent() == (1, WHOLE_TRANSACTION)


def test_an_attempt_that_was_charged_is_not_charged_again(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client, Rate.per_minute(LIMIT + 1))
    fill(client, handshakes, user)
    with pytest.raises(LimitReached):
        handshakes.open(attempt(user, 9))
    connections_of(client).remove(recipient(f"{user}-0", user), NOW, GROUPS)
    client.spent()
    handshakes.open(attempt(user, 9), charged=True)
    assert client.spent() == (1, WHOLE_TRANSACTION)
    with pytest.raises(RateLimited):
        handshakes.open(attempt(user, 10))


def test_a_charged_attempt_still_needs_room(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    with pytest.raises(LimitReached):
        handshakes.open(attempt(user, 9), charged=True)


@pytest.mark.parametrize("refused_before", [False, True])
def test_opening_an_open_connection_again_changes_nothing(
    client: Metered, user: str, refused_before: bool
) -> None:
    handshakes = handshakes_of(client)
    fill(client, handshakes, user)
    if refused_before:
        with pytest.raises(LimitReached):
            handshakes.open(attempt(user, 9))
    handshakes.open(attempt(user, 0))


def test_attempts_whose_client_has_left_are_charged(client: Metered, user: str) -> None:
    handshakes = handshakes_of(client, Rate.per_minute(2))
    left = attempt(user, 1)
    connections_of(client).remove(left.recipient, NOW)
    client.spent()
    for expected in ((2, WHOLE_TRANSACTION + 1), (1, 1)):
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
    for name, calls in zip(reversed(names), (1, 2), strict=True):
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
        handshakes.open(attempt(user, 9))
    client.spent()
    assert not handshakes.may_probe(key, EpochMs(NOW + 60_000), reached.value.probed_at)
    assert client.spent() == (0, 0)
    assert handshakes.may_probe(key, EpochMs(NOW + 60_001), reached.value.probed_at)
