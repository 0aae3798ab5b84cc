"""The history's streams: which messages are stored in which, and how they are read."""

import json
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib.clock import Clock, EpochMs
from chalicelib.errors import Unavailable
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.encryption import Encryption, FixedKeys
from chalicelib.protocol.messages import Message
from chalicelib.protocol.ulid import Stamp
from chalicelib.settings import MasterKey
from chalicelib.store.delayed import MARKED_MS, name_digest
from chalicelib.store.dynamodb import MAX_BATCH_WRITE, Store
from chalicelib.store.history import DELAYED_MS, PAGE_ITEMS, REACH_BACK_MS, History
from chalicelib.store.schema import everyone_stream, group_stream, user_stream
from chalicelib.store.stored_messages import RequestNumber
from tests.support.tables import HISTORY_SECONDS, NOW, Counted, empty, scan
from tests.support.world import LIFE, Inline

USERS, GROUPS = AudienceKind.USERS, AudienceKind.GROUPS
KEYS = (MasterKey("k", b"1" * 32),)


def history_of(
    client: Any, seconds: int = HISTORY_SECONDS, keys: Any = KEYS, now: Clock = lambda: NOW
) -> History:
    return History(
        Store(client, LIFE),
        seconds=seconds,
        encryption=Encryption(FixedKeys(keys)),
        writers=Inline(),
        now=now,
    )


@pytest.fixture
def history(life: Any) -> History:
    return history_of(life)


def message(audience: Audience, at: EpochMs = NOW, **more: Any) -> Message:
    return Message(
        id=next(Stamp.fresh(at).ids()),
        sender="alice",
        timestamp=at,
        audience=audience,
        type="chat",
        data={"n": 1},
        **more,
    )


def ids(stored: Any) -> list[str]:
    return [one.id for one in stored]


def test_each_kind_of_audience_has_streams_of_its_own(history: History) -> None:
    users = message(Audience(USERS, ("bob", "carol"), except_users=frozenset({"carol"})))
    groups = message(Audience(GROUPS, ("red", "blue")))
    everyone = message(Audience(AudienceKind.ALL))
    history.append([users, groups, everyone], "acme")
    assert ids(history.read(user_stream("acme", "bob"), NOW)) == [users.id]
    assert ids(history.read(user_stream("acme", "carol"), NOW)) == []
    assert ids(history.read(group_stream("acme", "red"), NOW)) == [groups.id]
    assert ids(history.read(group_stream("acme", "blue"), NOW)) == [groups.id]
    assert ids(history.read(everyone_stream("acme"), NOW)) == [everyone.id]
    assert (
        ids(history.read(everyone_stream(None), NOW))
        == ids(history.read(user_stream(None, "bob"), NOW))
        == []
    )


def test_a_stream_is_read_from_a_time_on(history: History) -> None:
    old, young = (
        message(Audience(USERS, ("bob",)), EpochMs(NOW - 500)),
        message(Audience(USERS, ("bob",))),
    )
    history.append([young, old], None)
    assert ids(history.read(user_stream(None, "bob"), EpochMs(NOW - 500))) == [old.id, young.id]
    assert ids(history.read(user_stream(None, "bob"), EpochMs(NOW - 499))) == [young.id]


def test_messages_with_store_false_or_to_connections_are_not_stored(
    life: Any, history: History
) -> None:
    typing_sign = message(Audience(USERS, ("bob",)), stored=False)
    direct = message(Audience(AudienceKind.CONNECTIONS, ("c",)))
    history.append([typing_sign, direct], None)
    history_of(life, seconds=0).append([message(Audience(USERS, ("bob",)))], None)
    assert list(scan(life, LIFE.history)) == []


def test_a_message_stored_long_after_its_id_was_made_is_delayed(history: History) -> None:
    punctual = message(Audience(USERS, ("bob",)), EpochMs(NOW - DELAYED_MS))
    late = message(Audience(USERS, ("bob",)), EpochMs(NOW - DELAYED_MS - 1))
    history.append([punctual, late], None)
    assert ids(history.delayed(None, NOW)) == [late.id]
    assert ids(history.delayed(None, EpochMs(NOW + 1))) == []


def test_a_queued_message_is_delayed_and_keeps_digests_of_the_names_of_its_audience(
    history: History,
) -> None:
    queued = message(Audience(USERS, ("bob",)))
    history.append([queued], None)
    history.mark_delayed([queued], None)
    [stored] = history.read(user_stream(None, "bob"), NOW)
    [delayed] = history.delayed(None, NOW)
    assert json.loads(history.text(stored)) == queued.to_frame_entry()
    assert (delayed.id, delayed.kind) == (queued.id, USERS)
    assert delayed.digests == {name_digest("bob")}


def test_a_request_precedes_the_later_ones_of_its_writer_only() -> None:
    request = RequestNumber("a", 1)
    assert request.precedes(request)
    assert request.precedes(RequestNumber("a", 2))
    assert not request.precedes(RequestNumber("a", 0))
    assert not request.precedes(RequestNumber("b", 2))


def test_an_encrypted_message_is_stored_encrypted(life: Any, history: History) -> None:
    secret = message(Audience(USERS, ("bob",)), encrypted=True)
    history.append([secret], None)
    [item] = scan(life, LIFE.history)
    assert "packed" not in item
    [stored] = history.read(user_stream(None, "bob"), NOW)
    assert json.loads(history.text(stored)) == secret.to_frame_entry()
    with pytest.raises(KeyError):
        history_of(life, keys=(MasterKey("another", b"2" * 32),)).text(stored)


def test_a_stored_message_says_whom_its_audience_excepts(history: History) -> None:
    audience = Audience(
        AudienceKind.ALL,
        except_users=frozenset({"bob", "\N{PARTY POPPER}"}),
        except_connections=frozenset({"c="}),
    )
    history.append([message(audience), message(audience, encrypted=True)], None)
    for stored in history.read(everyone_stream(None), NOW):
        for user, connection in (("bob", "x="), ("\N{PARTY POPPER}", "x="), ("carol", "c=")):
            assert stored.excepts(user, connection)
        assert not stored.excepts("carol", "bob")


def test_a_message_expires_when_no_resume_can_ask_for_it(life: Any, history: History) -> None:
    history.append([message(Audience(USERS, ("bob",)))], None)
    [item] = scan(life, LIFE.history)
    last_asked = NOW + REACH_BACK_MS + HISTORY_SECONDS * 1000
    assert 0 < int(item["expiresAt"]["N"]) * 1000 - last_asked <= 1000


def test_names_are_written_in_batches(life: Any) -> None:
    client: Any = Counted(life)
    history = history_of(client)
    names = tuple(f"user-{number}" for number in range(MAX_BATCH_WRITE + 1))
    history.append([message(Audience(USERS, names))], None)
    assert client.calls == ["batch_write_item"] * 2


# --- The marker of delayed messages


def marker(client: Any) -> EpochMs:
    """Return the last time that the marker covers."""
    [item] = [one for one in scan(client, LIFE.history) if one["position"]["S"] == "delayed"]
    return EpochMs(int(item["until"]["N"]))


def delays_from(history: History, since: EpochMs) -> bool:
    page = history.first_page(everyone_stream(None), NOW)
    return history.may_be_delayed(page, since)


def test_a_delay_may_have_been_noted_up_to_the_time_that_the_marker_covers(
    life: Any, history: History
) -> None:
    assert not delays_from(history, EpochMs(0))
    history.append([message(Audience(AudienceKind.ALL))], None)
    assert not delays_from(history, EpochMs(0))
    history.mark_delayed([message(Audience(USERS, ("bob",)))], None)
    assert marker(life) == NOW + MARKED_MS
    assert delays_from(history, EpochMs(NOW + MARKED_MS))
    assert not delays_from(history, EpochMs(NOW + MARKED_MS + 1))


def test_a_delay_may_have_been_noted_if_the_stream_has_more_than_was_read(
    life: Any, history: History
) -> None:
    history.append([message(Audience(AudienceKind.ALL)) for _ in range(PAGE_ITEMS + 1)], None)
    assert delays_from(history, EpochMs(NOW + MARKED_MS))


def test_an_environment_moves_the_marker_on_once_a_minute_at_most(life: Any) -> None:
    client: Any = Counted(life)
    now = [NOW]
    history = history_of(client, now=lambda: now[0])
    for step, calls in ((0, 2), (MARKED_MS, 1), (MARKED_MS + 1, 2)):
        client.calls.clear()
        now[0] = EpochMs(NOW + step)
        history.mark_delayed([message(Audience(USERS, ("bob",)), now[0])], None)
        assert client.calls == ["update_item", "batch_write_item"][-calls:]


def test_an_environment_relies_on_a_marker_that_another_one_moved_on(life: Any) -> None:
    """The other's clock is ahead."""
    history_of(life, now=lambda: EpochMs(NOW + 500)).mark_delayed(
        [message(Audience(USERS, ("bob",)))], None
    )
    client: Any = Counted(life)
    history = history_of(client)
    for calls in (["update_item", "batch_write_item"], ["batch_write_item"]):
        client.calls.clear()
        history.mark_delayed([message(Audience(USERS, ("bob",)))], None)
        assert client.calls == calls
    assert marker(life) == NOW + 500 + MARKED_MS


@given(
    delays=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3 * MARKED_MS)), min_size=1, max_size=12
    )
)
@settings(suppress_health_check=list(HealthCheck), max_examples=30)
def test_no_delay_is_noted_for_a_time_that_the_marker_does_not_cover(
    life: Any, delays: list[tuple[int, int]]
) -> None:
    """Whatever the clocks of the environments say."""
    empty(life, LIFE)
    now = [NOW]
    environments = [history_of(life, now=lambda: now[0]) for _ in range(3)]
    covered = EpochMs(0)
    for environment, time in delays:
        now[0] = EpochMs(NOW + time)
        delayed = message(Audience(USERS, ("bob",)), now[0])
        assert environments[environment].mark_delayed([delayed], None) == set()
        assert marker(life) >= max(covered, now[0])
        covered = marker(life)


def test_tenants_have_markers_of_their_own(life: Any, history: History) -> None:
    history.mark_delayed([message(Audience(USERS, ("bob",)))], "acme")
    assert not delays_from(history, EpochMs(0))


class WithoutMarker(Counted):
    """Fails to update items."""

    def update_item(self, **_: Any) -> Any:
        raise ConnectTimeoutError(endpoint_url="here")


def test_a_message_whose_delay_no_resume_would_look_for_is_not_stored(life: Any) -> None:
    client: Any = WithoutMarker(life)
    history = history_of(client)
    late = message(Audience(USERS, ("bob",)), EpochMs(NOW - DELAYED_MS - 1))
    punctual = message(Audience(USERS, ("bob",)))
    assert history.append([late, punctual], None) == {late.id}
    assert history.mark_delayed([punctual], None) == {punctual.id}
    assert history.append([punctual], None) == set()


# --- Without room, or without storage


class Full(Counted):
    """Leaves the items of some streams unwritten, as DynamoDB does with a hot key."""

    def __init__(self, client: Any, *streams: str) -> None:
        super().__init__(client)
        self._streams = streams

    def batch_write_item(self, **parameters: Any) -> Any:
        self.calls.append("batch_write_item")
        [(table, requests)] = parameters["RequestItems"].items()
        full = [r for r in requests if r["PutRequest"]["Item"]["stream"]["S"] in self._streams]
        if rest := [request for request in requests if request not in full]:
            self._client.batch_write_item(RequestItems={table: rest})
        return {"UnprocessedItems": {table: full} if full else {}}


def test_a_message_without_room_in_one_of_its_streams_is_not_stored(life: Any) -> None:
    client: Any = Full(life, "user//hot", "late//")
    history = history_of(client)
    to_both = message(Audience(USERS, ("bob", "hot")))
    to_bob = message(Audience(USERS, ("bob",)))
    late = message(Audience(USERS, ("bob",)), EpochMs(NOW - DELAYED_MS - 1))
    assert history.append([to_both, to_bob, late], None) == {to_both.id, late.id}
    assert set(ids(history.read(user_stream(None, "bob"), NOW))) >= {to_both.id, to_bob.id}
    assert history.append([to_bob], None) == set()
    assert history.mark_delayed([to_bob], None) == {to_bob.id}


def test_a_history_that_cannot_be_reached_raises_unavailable() -> None:
    class Down:
        def batch_write_item(self, **_: Any) -> Any:
            raise ConnectTimeoutError(endpoint_url="here")

    with pytest.raises(Unavailable):
        history_of(Down()).append([message(Audience(USERS, ("bob",)))], None)


def test_messages_that_the_history_does_not_keep_cost_no_copies(life: Any) -> None:
    kept = message(Audience(USERS, ("bob", "carol")))
    history = history_of(life)
    direct = message(Audience(AudienceKind.CONNECTIONS, ("c",)))
    assert history.copies([kept, message(Audience(GROUPS, ("red",))), direct]) == 3
    assert history.copies([message(Audience(USERS, ("bob",)), stored=False)]) == 0
    assert history_of(life, seconds=0).copies([kept]) == 0
