"""Finding the recipients of audiences, over both emulators of DynamoDB."""

from typing import Any

import pytest

from chalicelib.errors import Unavailable
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.store.audience import Audiences
from chalicelib.store.dynamodb import Store
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


def test_every_page_of_the_table_is_read_for_everyone(dynamodb: Any, user: str) -> None:
    """A page of a scan ends at 1 MB, before it is filtered: these items make three pages."""
    for number in range(60):
        item = connection(f"{user}-{number}", f"{user}-{number}", user).to_item()
        item["padding"] = {"S": "x" * 50_000}
        dynamodb.put_item(TableName=TABLES.connections, Item=item)
    assert "LastEvaluatedKey" in dynamodb.scan(TableName=TABLES.connections)
    audiences = Audiences(Store(dynamodb, TABLES))
    everyone = found(audiences, Audience(AudienceKind.ALL), user)
    assert everyone == {f"{user}-{number}" for number in range(60)}
    but_one = Audience(AudienceKind.ALL, except_users=frozenset({f"{user}-7"}))
    assert found(audiences, but_one, user) == everyone - {f"{user}-7"}
    assert found(audiences, Audience(AudienceKind.ALL), f"{user}-2") == set()


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
