"""Finding the recipients of audiences, over both emulators of DynamoDB."""

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from chalicelib.errors import Unavailable
from chalicelib.protocol.audience import Audience, AudienceKind, Selector
from chalicelib.store.audience import Audiences, Shard
from chalicelib.store.dynamodb import Store
from chalicelib.store.items import Connection
from chalicelib.store.schema import ROSTER_SHARDS
from tests.support.tables import TABLES, Counted, connection, connections_of


def selected(audiences: Audiences, *wanted: Audience, tenant: str | None = None) -> dict[str, int]:
    """Return each connection that is found with its selection; each must be found once."""
    found = [entry for page in audiences.pages(wanted, tenant) for entry in page.recipients]
    selections = {recipient.connection_id: selection for recipient, selection in found}
    assert len(selections) == len(found)
    return selections


def found(audiences: Audiences, audience: Audience, tenant: str | None = None) -> set[str]:
    return set(selected(audiences, audience, tenant=tenant))


def test_reading_250_users_takes_three_calls(dynamodb: Any, user: str) -> None:
    client = Counted(dynamodb)
    connections = connections_of(dynamodb)
    for number in range(0, 250, 50):
        connections.open(connection(f"{user}-{number}", f"{user}-{number}"))
    names = tuple(f"{user}-{number}" for number in range(250))
    audiences = Audiences(Store(client, TABLES))  # type: ignore[arg-type]
    assert found(audiences, Audience(AudienceKind.USERS, names)) == set(names[::50])
    assert client.calls == ["batch_get_item"] * 3


def enter(dynamodb: Any, *members: Connection) -> None:
    """Store the entries of connections in the roster and in their groups, and nothing else."""
    for one in members:
        for item in (one.roster_entry(), *(one.membership(group) for group in one.groups)):
            dynamodb.put_item(TableName=TABLES.groups, Item=item)


def test_every_page_of_the_roster_is_read_for_everyone(dynamodb: Any, user: str) -> None:
    """A page of a query ends at 1 MB: each of these shards has several."""
    for number in range(40):
        item = connection(f"{user}-{number}", f"{user}-{number}", user).roster_entry()
        item["padding"] = {"S": "x" * 300_000}
        dynamodb.put_item(TableName=TABLES.groups, Item=item)
    audiences = Audiences(Store(dynamodb, TABLES))
    everyone = found(audiences, Audience(AudienceKind.ALL), user)
    assert everyone == {f"{user}-{number}" for number in range(40)}
    but_one = Audience(AudienceKind.ALL, except_users=frozenset({f"{user}-7"}))
    assert found(audiences, but_one, user) == everyone - {f"{user}-7"}
    assert found(audiences, Audience(AudienceKind.ALL), f"{user}-2") == set()


@pytest.mark.parametrize("readers", [None, "threads"])
def test_everyone_of_a_small_tenant_takes_a_query_for_each_shard_whatever_else_there_is(
    dynamodb: Any, user: str, readers: str | None
) -> None:
    enter(dynamodb, *(connection(f"{user}-{n}", user, user) for n in range(10)))
    enter(dynamodb, *(connection(f"{user}-other-{n}", user, f"{user}-2") for n in range(90)))
    client: Any = Counted(dynamodb)
    with ThreadPoolExecutor() as executor:
        audiences = Audiences(Store(client, TABLES), executor if readers else None)
        everyone = found(audiences, Audience(AudienceKind.ALL), user)
    assert everyone == {f"{user}-{number}" for number in range(10)}
    assert client.calls == ["query"] * ROSTER_SHARDS


def test_an_audience_without_everyone_is_read_in_one_thread(dynamodb: Any, user: str) -> None:
    class NoThreads(Executor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise AssertionError

    enter(dynamodb, connection(user, user, user, "a", "b"))
    audiences = Audiences(Store(dynamodb, TABLES), NoThreads())
    for kind, names in ((AudienceKind.GROUPS, ("a", "b")), (AudienceKind.USERS, (user,))):
        found(audiences, Audience(kind, names), user)


def test_a_failed_read_of_a_shard_fails_the_page(dynamodb: Any, user: str) -> None:
    class FailsOnce(Counted):
        def query(self, **parameters: Any) -> Any:
            self.calls.append("query")
            if len(self.calls) == 3:
                raise EndpointConnectionError(endpoint_url="https://dynamodb.invalid")
            return dynamodb.query(**parameters)

    client: Any = FailsOnce(dynamodb)
    with ThreadPoolExecutor() as executor, pytest.raises(Unavailable):
        found(Audiences(Store(client, TABLES), executor), Audience(AudienceKind.ALL), user)


ALL = Audience(AudienceKind.ALL)
SORTED = [
    (ALL,),
    (Audience(AudienceKind.GROUPS, ("even",)),),
    (ALL, Audience(AudienceKind.GROUPS, ("even", "third"))),
    (Audience(AudienceKind.GROUPS, ("even", "third")), Audience(AudienceKind.USERS, ("user-1",))),
]


def people(tenant: str, count: int) -> list[Connection]:
    """Return connections, some of which are in one or two groups."""
    return [
        connection(
            f"{tenant}-{number:04}",
            f"user-{number}",
            tenant,
            *(["even"] if number % 2 == 0 else []),
            *(["third"] if number % 3 == 0 else []),
        )
        for number in range(count)
    ]


def selections(audiences: Sequence[Audience], members: Sequence[Connection]) -> dict[str, int]:
    """Return each addressed connection with its selection, without reading anything."""
    selector = Selector(audiences)
    selected = {
        one.connection_id: selector.select(
            one.principal.user_id, one.connection_id, selector.of_groups(one.groups)
        )
        for one in members
    }
    return {one: selection for one, selection in selected.items() if selection}


@pytest.mark.parametrize("page_items", [1, 7, 1000])
@pytest.mark.parametrize("wanted", SORTED, ids=["all", "group", "all and groups", "and a user"])
def test_pages_are_sorted_and_no_larger_than_asked_for_and_another_reader_can_go_on(
    dynamodb: Any, user: str, wanted: Sequence[Audience], page_items: int
) -> None:
    members = people(user, 60)
    enter(dynamodb, *members)
    dynamodb.put_item(TableName=TABLES.users, Item=tied(members[1]))
    expected = selections(wanted, members)
    audiences, after = Audiences(Store(dynamodb, TABLES)), ""
    read: dict[str, int] = {}
    for _ in range(2 * len(members)):  # each reader reads two pages
        reader = audiences.pages(wanted, user, Shard(after=after), page_items)
        for page in islice(reader, 2):
            assert len(page.recipients) <= page_items
            ids = [one.connection_id for one, _ in page.recipients]
            assert ids == sorted(ids)
            assert not ids or ids[0] > max(read, default="")
            read |= {one.connection_id: selection for one, selection in page.recipients}
        if page.position is None:
            break
        after = page.position
    assert read == expected


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_the_shards_of_everyone_have_each_recipient_once(
    dynamodb: Any, user: str, shards: int
) -> None:
    members = people(user, 60)
    enter(dynamodb, *members)
    wanted = SORTED[2]
    audiences = Audiences(Store(dynamodb, TABLES))
    read = [
        (one.connection_id, selection)
        for shard in range(shards)
        for page in audiences.pages(wanted, user, Shard(shard, shards), 10)
        for one, selection in page.recipients
    ]
    assert len(read) == len(members)
    assert dict(read) == selections(wanted, members)


def tied(one: Connection) -> Any:
    """Return the item of a user who has one connection."""
    return {
        "user": {"S": one.recipient.user_key},
        "connections": {"SS": [one.connection_id]},
        f"@{one.connection_id}": one.recipient.reach(),
    }


def test_keys_that_a_batch_left_unread_are_read_again(dynamodb: Any, user: str) -> None:
    """DynamoDB leaves keys unread when throttled or above 16 MB; the emulators never do."""

    class ReadsOneKey(Counted):
        def batch_get_item(self, RequestItems: Any) -> Any:  # noqa: N803
            self.calls.append("batch_get_item")
            [(table, request)] = RequestItems.items()
            first, rest = request["Keys"][:1], request["Keys"][1:]
            answer = dynamodb.batch_get_item(RequestItems={table: {**request, "Keys": first}})
            if rest:
                answer["UnprocessedKeys"] = {table: {**request, "Keys": rest}}
            return answer

    connections = connections_of(dynamodb)
    for number in range(3):
        connections.open(connection(f"{user}-{number}", user))
    client: Any = ReadsOneKey(dynamodb)
    ids = tuple(f"{user}-{number}" for number in range(3))
    by_id = Audience(AudienceKind.CONNECTIONS, ids)
    assert found(Audiences(Store(client, TABLES)), by_id) == set(ids)
    assert len(client.calls) == 3
    too_many = Audience(AudienceKind.CONNECTIONS, tuple(f"{user}-{n}" for n in range(9)))
    with pytest.raises(Unavailable):
        found(Audiences(Store(client, TABLES)), too_many)


def test_several_audiences_are_read_together_and_each_connection_gets_its_selection(
    dynamodb: Any, user: str
) -> None:
    a, b, c = f"{user}-a", f"{user}-b", f"{user}-c"
    connections = connections_of(dynamodb)
    for name in (a, b, c):
        connections.open(connection(name, name, user))
    client = Counted(dynamodb)
    audiences = Audiences(Store(client, TABLES))  # type: ignore[arg-type]
    named = (
        Audience(AudienceKind.USERS, (a, b)),
        Audience(AudienceKind.CONNECTIONS, (b, c)),
        Audience(AudienceKind.USERS, (a, c), except_users=frozenset({a})),
        Audience(AudienceKind.USERS, (a, b), except_connections=frozenset({b})),
    )
    assert selected(audiences, *named, tenant=user) == {a: 0b1001, b: 0b0011, c: 0b0110}
    assert client.calls == ["batch_get_item"]

    everyone = Audience(AudienceKind.ALL, except_users=frozenset({b}))
    assert selected(audiences, named[0], everyone, tenant=user) == {a: 0b11, b: 0b01, c: 0b10}
    # A connection of another tenant is never found, even if it is named.
    assert selected(audiences, *named, everyone, tenant="other") == {}


def test_a_connection_missing_from_its_users_item_is_found_by_its_id(
    dynamodb: Any, user: str
) -> None:
    dynamodb.put_item(TableName=TABLES.connections, Item=connection(f"{user}-lost", user).to_item())
    both = (
        Audience(AudienceKind.USERS, (user,)),
        Audience(AudienceKind.CONNECTIONS, (f"{user}-lost",)),
    )
    assert selected(Audiences(Store(dynamodb, TABLES)), *both) == {f"{user}-lost": 0b11}
