"""The selection of a request's messages for a connection."""

from chalicelib.protocol.audience import Audience, AudienceKind, Selector

SELECTOR = Selector(
    [
        Audience(AudienceKind.USERS, ("alice", "bob")),
        Audience(AudienceKind.CONNECTIONS, ("c1",), except_users=frozenset({"bob"})),
        Audience(AudienceKind.GROUPS, ("team",), except_connections=frozenset({"c2"})),
        Audience(AudienceKind.ALL, except_users=frozenset({"alice"})),
    ]
)


def test_each_kind_of_audience_selects_its_messages() -> None:
    team = SELECTOR.of_groups(["team", "unknown"])
    assert team == 0b0100
    assert SELECTOR.of_groups([]) == 0
    assert SELECTOR.select("alice", "c1", team) == 0b0111
    assert SELECTOR.select("carol", "c9", 0) == 0b1000


def test_an_exception_counts_for_its_own_message_only() -> None:
    team = SELECTOR.of_groups(["team"])
    assert SELECTOR.select("bob", "c1", team) == 0b1101
    assert SELECTOR.select("bob", "c2", team) == 0b1001


def test_selecting_adds_no_names() -> None:
    SELECTOR.select("stranger", "c3", SELECTOR.of_groups(["other"]))
    assert "stranger" not in SELECTOR.for_users
    assert "other" not in SELECTOR.for_groups
