"""Progress is recorded once per position, reported to whom it concerns, and kept for a day."""

from typing import Any

import pytest

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs
from chalicelib.errors import InsufficientScope, NotFound
from chalicelib.fanout.content import ContentLost
from chalicelib.fanout.progress import (
    LAST_TRY_MS,
    Progress,
    ShardPosition,
    ShardTaken,
)
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import MAX_MESSAGES, Message
from chalicelib.protocol.reports import MAX_FAILED, Report, Result
from chalicelib.store.dynamodb import Store
from chalicelib.store.schema import QUEUED_SECONDS, message_key
from tests.support.tables import TABLES, Counted


def item_bytes(item: Any) -> int:
    """Return the size of an item, or of a map, as DynamoDB counts it.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    return sum(len(name.encode()) + value_bytes(value) for name, value in item.items())


def value_bytes(typed: Any) -> int:
    [(kind, value)] = typed.items()
    match kind:
        case "M":
            return 3 + len(value) + item_bytes(value)
        case "L":
            return 3 + len(value) + sum(map(value_bytes, value))
        case "N":
            return len(value) // 2 + 2
        case "BOOL":
            return 1
    return len(value.encode())


NOW = EpochMs(1_995_477_071_772)
ALICE = Principal("alice", 10**12)


@pytest.fixture
def progress(moto: Any) -> Progress:
    return Progress(Store(moto, TABLES), Encryption(None))


@pytest.fixture
def request_id(progress: Progress, user: str) -> str:
    """A request of two messages in one shard."""
    progress.begin([message(user), message(f"{user}-2")], ALICE, 1, "correlation")
    return user


def message(message_id: str) -> Message:
    return Message(
        id=message_id,
        sender="alice",
        timestamp=NOW,
        audience=Audience(AudienceKind.ALL),
        type="message",
        data=1,
    )


def start(request: str, after: str = "") -> ShardPosition:
    return ShardPosition(request, 0, after)


def reports(request: str, delivered: int = 1) -> list[Report]:
    made = [Report(request), Report(f"{request}-2")]
    for report in made:
        report.counts[Result.DELIVERED] = delivered
    return made


def delivered(progress: Progress, request: str) -> list[object]:
    return [
        progress.of(message_id, ALICE, NOW)["delivered"] for message_id in (request, f"{request}-2")
    ]


# --- Claims


def test_a_job_gets_the_messages_and_the_correlation_id(
    progress: Progress, request_id: str
) -> None:
    claimed = progress.claim(start(request_id), "job")
    assert [one.id for one in claimed.messages] == [request_id, f"{request_id}-2"]
    assert claimed.correlation_id == "correlation"


def test_a_job_that_comes_again_can_claim_its_shard_again(
    progress: Progress, request_id: str
) -> None:
    progress.claim(start(request_id), "job")
    assert progress.claim(start(request_id), "job").messages


def test_a_shard_has_one_job_at_a_time(progress: Progress, request_id: str) -> None:
    progress.claim(start(request_id), "job")
    with pytest.raises(ShardTaken) as taken:
        progress.claim(start(request_id), "duplicate")
    assert taken.value.requeue_from is None


def test_a_job_whose_shard_has_advanced_still_has_to_requeue_the_rest(
    progress: Progress, request_id: str
) -> None:
    progress.claim(start(request_id), "job")
    progress.advance(start(request_id), "job", "c-5", reports(request_id))
    with pytest.raises(ShardTaken) as taken:
        progress.claim(start(request_id), "job")
    assert taken.value.requeue_from == "c-5"
    with pytest.raises(ShardTaken) as taken:
        progress.claim(start(request_id), "another")
    assert taken.value.requeue_from is None


def test_a_job_whose_shard_is_done_has_nothing_to_requeue(
    progress: Progress, request_id: str
) -> None:
    progress.claim(start(request_id), "job")
    assert progress.advance(start(request_id), "job", None, reports(request_id)) is None
    with pytest.raises(ShardTaken) as taken:
        progress.claim(start(request_id), "job")
    assert taken.value.requeue_from is None


def test_the_messages_of_an_unknown_request_are_lost(progress: Progress, user: str) -> None:
    with pytest.raises(ContentLost, match="a job's messages have expired"):
        progress.claim(start(user), "job")


# --- Positions and counts


def test_counts_and_position_are_recorded_once(progress: Progress, request_id: str) -> None:
    """Two workers got the same job; the slower one learns how far the other came."""
    progress.claim(start(request_id), "job")
    progress.claim(start(request_id), "job")
    assert progress.advance(start(request_id), "job", "c-5", reports(request_id)) == "c-5"
    assert progress.advance(start(request_id), "job", "c-9", reports(request_id)) == "c-5"
    assert delivered(progress, request_id) == [1, 1]


def test_a_shard_is_done_after_its_last_position(progress: Progress, request_id: str) -> None:
    progress.claim(start(request_id), "job")
    progress.advance(start(request_id), "job", "c-5", reports(request_id))
    progress.claim(start(request_id, "c-5"), "next")
    assert not progress.of(request_id, ALICE, NOW)["done"]
    assert progress.advance(start(request_id, "c-5"), "next", None, reports(request_id, 2)) is None
    assert progress.of(request_id, ALICE, NOW)["done"]
    assert delivered(progress, request_id) == [3, 3]


def test_one_message_costs_an_update_and_several_a_transaction(moto: Any, user: str) -> None:
    client: Any = Counted(moto)
    progress = Progress(Store(client, TABLES), Encryption(None))
    for request, count in ((user, 1), (f"{user}-more", 2)):
        progress.begin([message(request), message(f"{request}-2")][:count], ALICE, 1)
        progress.claim(start(request), "job")
        client.calls.clear()
        progress.advance(start(request), "job", None, reports(request)[:count])
        assert client.calls == [["update_item"], ["transact_write_items"]][count - 1]


def test_a_hundred_failures_are_listed_however_many_slices_have_some(
    progress: Progress, request_id: str
) -> None:
    for number in range(3):
        position = start(request_id, str(number) if number else "")
        progress.claim(position, f"job-{number}")
        report = Report(request_id)
        for failed in range(60):
            report.add(f"connection-{number}-{failed}", "user", Result.GONE, "gone")
        rest = progress.advance(position, f"job-{number}", str(number + 1), [report])
        assert rest == str(number + 1)
    stored: Any = progress.of(request_id, ALICE, NOW)
    assert (stored["gone"], len(stored["failed"])) == (180, 100)


def test_the_items_of_a_request_fit_into_a_transaction_whatever_the_names_of_the_failed(
    moto: Any, progress: Progress, user: str
) -> None:
    longest = "\N{PARTY POPPER}" * 64
    progress.begin([message(user)], Principal(longest, 10**12, tenant=longest), 1, "c" * 36)
    for number in range(4):
        position = start(user, str(number) if number else "")
        progress.claim(position, f"job-{number}")
        report = Report(user)
        for failed in range(MAX_FAILED - 1):
            report.add(f"L0SM9cOFvHcCI{failed:03}", longest, Result.GONE, "http_403")
        rest = progress.advance(position, f"job-{number}", str(number + 1), [report])
        assert rest == str(number + 1)
        item = moto.get_item(TableName=TABLES.messages, Key=message_key(user))["Item"]
        assert item_bytes(item) * MAX_MESSAGES < aws_limits.TRANSACTION_BYTES
    stored: Any = progress.of(user, Principal(longest, 10**12, tenant=longest), NOW)
    assert (stored["gone"], len(stored["failed"])) == (4 * (MAX_FAILED - 1), 100)


def test_a_request_that_is_begun_again_keeps_its_shards(progress: Progress, user: str) -> None:
    first = progress.begin([message(user)], ALICE, 4)
    assert first.shards == 4
    assert progress.begin([message(user)], ALICE, 1) == first


# --- Reports


def test_a_shard_fails_when_its_last_try_is_over(progress: Progress, request_id: str) -> None:
    progress.claim(start(request_id), "job", last_try=NOW)
    running: Any = progress.of(request_id, ALICE, EpochMs(NOW + LAST_TRY_MS))
    assert (running["done"], running["shards"]["failed"]) == (False, 0)
    failed: Any = progress.of(request_id, ALICE, EpochMs(NOW + LAST_TRY_MS + 1))
    assert (failed["done"], failed["shards"]) == (True, {"total": 1, "done": 0, "failed": 1})


def test_a_report_is_kept_for_a_day(progress: Progress, request_id: str) -> None:
    assert progress.of(request_id, ALICE, EpochMs(NOW + (QUEUED_SECONDS - 1) * 1000))
    with pytest.raises(NotFound):
        progress.of(request_id, ALICE, EpochMs(NOW + QUEUED_SECONDS * 1000))


def test_a_message_of_another_tenant_is_not_found(progress: Progress, request_id: str) -> None:
    other = Principal("alice", 10**12, tenant="other", scopes=frozenset({Scope.CONNECTIONS_MANAGE}))
    with pytest.raises(NotFound, match="no message with this id was queued"):
        progress.of(request_id, other, NOW)


def test_a_report_is_for_the_sender_and_for_managers(progress: Progress, request_id: str) -> None:
    with pytest.raises(InsufficientScope):
        progress.of(request_id, Principal("bob", 10**12), NOW)
    manager = Principal("bob", 10**12, scopes=frozenset({Scope.CONNECTIONS_MANAGE}))
    assert progress.of(request_id, manager, NOW)["id"] == request_id
