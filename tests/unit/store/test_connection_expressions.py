"""The clauses of transitions, where a table can't show them."""

from dataclasses import replace

from chalicelib.clock import EpochMs
from chalicelib.store.connection_expressions import (
    CLOSED_SLOT_MS,
    add_tombstone,
    delete_connection,
    has_groups,
    set_principal,
    update_connection,
)
from chalicelib.store.items import HANDSHAKE_SECONDS
from chalicelib.store.schema import CLOSED_SLOTS
from tests.support.tables import NOW, TABLES, connection, recipient


def test_no_update_or_deletion_creates_a_connection() -> None:
    for action in (
        update_connection(TABLES, "c")["Update"],
        delete_connection(TABLES, "c")["Delete"],
    ):
        assert action["ConditionExpression"].startswith("(attribute_exists(connectionId))")


def test_groups_are_compared_as_a_whole() -> None:
    assert has_groups({"b", "a"}).values == {":expected": {"SS": ["a", "b"]}}
    assert has_groups([]).when == ("attribute_not_exists(#groups)",)


def test_a_connection_without_groups_has_no_attribute_for_them() -> None:
    opened = connection("c", "alice", None, "team")
    assert set_principal(opened)[1].set == ("#groups = :kept",)
    assert set_principal(replace(opened, groups=frozenset()))[1].remove == ("#groups",)


def test_an_older_connection_gets_no_tombstone() -> None:
    assert add_tombstone(recipient("c", "alice"), EpochMs(NOW + HANDSHAKE_SECONDS * 1000)) == []


def test_a_tombstone_outlives_a_handshake() -> None:
    """An addition removes the ids of two minutes ago at the latest, never those of the last."""
    for minute in range(len(CLOSED_SLOTS)):
        now = EpochMs(NOW + minute * CLOSED_SLOT_MS)
        [added] = add_tombstone(connection("c", "alice", at=now).recipient, now)
        [before] = add_tombstone(
            connection("c", "alice", at=EpochMs(now - CLOSED_SLOT_MS)).recipient,
            EpochMs(now - CLOSED_SLOT_MS),
        )
        slot = before.add[0].split()[0]
        assert slot not in added.remove
        assert slot in CLOSED_SLOTS
    assert CLOSED_SLOT_MS > HANDSHAKE_SECONDS * 1000
