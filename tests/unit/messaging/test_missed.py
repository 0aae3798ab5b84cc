"""What a resume holds in memory is bounded, however much others have sent."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.messaging.missed import DEFAULT_LIMITS, Missed, ResumeLimits
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.ulid import earliest
from chalicelib.store.dynamodb import Store
from chalicelib.store.history import REACH_BACK_MS, History
from chalicelib.store.items import Recipient
from chalicelib.store.schema import everyone_stream, group_stream, user_stream
from tests.support.large_history import LargeHistory, ids, incompressible, message
from tests.support.tables import HISTORY_SECONDS, TABLES
from tests.support.world import Inline

NOW = EpochMs(1_795_477_071_000)
KEPT_SINCE = EpochMs(NOW - HISTORY_SECONDS * 1000)
ALICE = Principal("alice", 10**12, groups=("*",))
USERS, GROUPS, ALL = AudienceKind.USERS, AudienceKind.GROUPS, AudienceKind.ALL

MESSAGES = 1500  # delayed ones
SOME = 400
LARGE = 90_000
HELD_BYTES = 6 * 1024 * 1024
"""All that a resume holds at a time: pages as they are read, merged and unpacked."""


@pytest.fixture
def large() -> LargeHistory:
    return LargeHistory(lambda message_id: incompressible(LARGE, message_id))


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def missed(
    client: Any,
    after: str,
    *,
    limits: ResumeLimits = DEFAULT_LIMITS,
    joined: dict[str, EpochMs] | None = None,
    since: EpochMs = KEPT_SINCE,
) -> Missed:
    history = History(
        Store(client, TABLES),
        seconds=HISTORY_SECONDS,
        encryption=Encryption(None),
        writers=Inline(),
        now=lambda: NOW,
    )
    return Missed(
        history,
        ALICE,
        Recipient("c", "alice", None, "https://example.com/prod"),
        after,
        joined=joined or {},
        since=EpochMs(since - REACH_BACK_MS),
        kept_since=KEPT_SINCE,
        limits=limits,
    )


def read(resume: Missed) -> list[str]:
    """Read everything, keep the ids, and check what was held at once."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    arrived = [one.id for chunk in resume.chunks() for one in chunk]
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < HELD_BYTES
    return arrived


def delay(client: LargeHistory, sent: list[str], kind: AudienceKind, *names: str) -> None:
    """Note that messages were delayed, in another order than that of their ids."""
    for number, message_id in enumerate(sorted(sent, key=lambda one: one[::-1])):
        noted_at = EpochMs(KEPT_SINCE + number * 10)
        client.add_delayed(message(message_id, NOW, kind, names), None, noted_at)


@pytest.mark.usefixtures("traced")
def test_delayed_messages_are_not_held_together(large: LargeHistory) -> None:
    old = ids(MESSAGES, EpochMs(KEPT_SINCE - 1_000_000))
    large.add(user_stream(None, "alice"), old, "writer/1")
    delay(large, old, USERS, "alice")
    assert read(missed(large, earliest(EpochMs(NOW - 1000)))) == old


@pytest.mark.usefixtures("traced")
def test_messages_in_doubt_are_not_held_together(large: LargeHistory) -> None:
    """Another environment sent them just before the client's last message."""
    doubtful = ids(SOME, EpochMs(NOW - 2 * SOME))
    [known, had] = ids(2, EpochMs(NOW - 100))
    stream = user_stream(None, "alice")
    large.add(stream, doubtful, "other/1")
    large.add(stream, [known, had], "writer/1")
    assert read(missed(large, had, since=EpochMs(NOW - 100))) == doubtful


@pytest.mark.usefixtures("traced")
def test_pages_of_many_groups_are_not_held_together(large: LargeHistory) -> None:
    groups = [f"g{number}" for number in range(50)]
    sent = ids(SOME, EpochMs(NOW - 50_000))
    for number, group in enumerate(groups):
        large.add(group_stream(None, group), sent[number::50], "writer/1")
    joined = dict.fromkeys(groups, KEPT_SINCE)
    assert read(missed(large, earliest(EpochMs(NOW - 60_000)), joined=joined)) == sent


@pytest.mark.usefixtures("traced")
def test_messages_that_compress_well_are_not_unpacked_together() -> None:
    client = LargeHistory(lambda _: "a" * LARGE)
    sent = ids(SOME, EpochMs(NOW - 50_000))
    client.add(everyone_stream(None), sent, "writer/1")
    assert read(missed(client, earliest(EpochMs(NOW - 60_000)))) == sent


# --- With less memory, the same messages in the same order

TINY = ResumeLimits(
    page_bytes=1,
    doubt_bytes=1,
    delayed_messages=3,
    delayed_bytes=1,
    chunk_bytes=1,
    chunk_messages=2,
)


def with_everything(client: LargeHistory) -> tuple[str, dict[str, EpochMs], list[str]]:
    """Store messages of every kind; return the last one, her groups, and what she missed."""
    old = ids(20, EpochMs(KEPT_SINCE - 1_000_000))
    doubtful = ids(20, EpochMs(NOW - 20_000))
    known = ids(20, EpochMs(NOW - 19_000))
    [had] = ids(1, EpochMs(NOW - 10_000))
    new = ids(30, EpochMs(NOW - 9_000))
    client.add(user_stream(None, "alice"), old[::2], "writer/1")
    client.add(group_stream(None, "team"), old[1::2], "writer/1")
    delay(client, old[::2], USERS, "bob", "alice")
    delay(client, old[1::2], GROUPS, "team", "other")
    client.add(user_stream(None, "alice"), doubtful, "other/1")
    client.add(user_stream(None, "alice"), known[::2], "writer/2")
    client.add(everyone_stream(None), known[1::2], "writer/3")
    delay(client, known[:4], USERS, "alice")
    delay(client, ids(9, EpochMs(NOW - 15_000)), USERS, "bob")
    client.add(everyone_stream(None), [had], "writer/4")
    client.add(group_stream(None, "team"), new, "writer/5")
    client.add(everyone_stream(None), new[::3], "writer/5")
    return had, {"team": EpochMs(0)}, old + doubtful + known[:4] + new


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, TINY], ids=["default", "tiny"])
def test_the_limits_change_neither_the_messages_nor_their_order(limits: ResumeLimits) -> None:
    client = LargeHistory(lambda message_id: incompressible(100, message_id))
    had, joined, expected = with_everything(client)
    resume = missed(client, had, limits=limits, joined=joined, since=EpochMs(NOW - 10_000))
    assert [one.id for chunk in resume.chunks() for one in chunk] == expected
    assert not resume.lost


def test_a_delayed_message_that_is_no_longer_stored_makes_a_resume_incomplete(
    large: LargeHistory,
) -> None:
    old = ids(3, EpochMs(KEPT_SINCE - 1_000_000))
    large.add(user_stream(None, "alice"), old[:2], "writer/1")
    delay(large, old, USERS, "alice")
    resume = missed(large, earliest(EpochMs(NOW - 1000)))
    assert [one.id for chunk in resume.chunks() for one in chunk] == old[:2]
    assert resume.lost


def test_the_references_to_others_delayed_messages_are_all_that_is_read_of_them(
    large: LargeHistory,
) -> None:
    """1,500 messages of 90 KB are 75 MB as they are stored."""
    others = ids(MESSAGES, EpochMs(KEPT_SINCE - 1_000_000))
    large.add(user_stream(None, "bob"), others, "writer/1")
    delay(large, others, USERS, "bob")
    assert list(missed(large, earliest(EpochMs(NOW - 1000))).chunks()) == []
    assert large.read_bytes < MESSAGES * 500
