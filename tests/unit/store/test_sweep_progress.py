from typing import Any

import pytest

from chalicelib.clock import EpochMs
from chalicelib.store.dynamodb import Store
from chalicelib.store.items import LONG_AGO
from chalicelib.store.sweep_progress import (
    CONNECTIONS,
    LEASE_MS,
    USERS,
    USERS_INTERVAL_MS,
    ShardProgress,
    SweepProgress,
    SweepShard,
)
from tests.support.tables import NOW
from tests.support.world import LIFE

SHARD = CONNECTIONS[0]
POSITION = {"connectionId": {"S": "c1"}}


class Clock:
    now: int = NOW

    def __call__(self) -> EpochMs:
        return EpochMs(self.now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(life: Any, clock: Clock) -> SweepProgress:
    return SweepProgress(Store(life, LIFE), now=clock)


def test_a_shard_that_was_never_swept_begins_at_its_start(progress: SweepProgress) -> None:
    assert progress.claim(SHARD) == ShardProgress(None, 0, began_at=NOW, last_began_at=LONG_AGO)


def test_a_claimed_shard_is_refused_to_others_until_the_lease_ends(
    progress: SweepProgress, clock: Clock
) -> None:
    assert progress.claim(SHARD) is not None
    clock.now += LEASE_MS
    assert progress.claim(SHARD) is None
    clock.now += 1
    assert progress.claim(SHARD) is not None


def test_saving_extends_the_lease(progress: SweepProgress, clock: Clock) -> None:
    progress.claim(SHARD)
    clock.now += LEASE_MS - 1
    progress.save(SHARD, ShardProgress(POSITION, 7), release=False)
    clock.now += LEASE_MS
    assert progress.claim(SHARD) is None
    clock.now += 1
    assert progress.claim(SHARD) == ShardProgress(POSITION, 7, began_at=NOW)


def test_a_released_shard_goes_on_where_it_was_left(progress: SweepProgress) -> None:
    progress.claim(SHARD)
    progress.save(SHARD, ShardProgress(POSITION, 7), release=True)
    assert progress.claim(SHARD) == ShardProgress(POSITION, 7, began_at=NOW)


@pytest.mark.parametrize(("shard", "wait"), [(SHARD, 0), (USERS[0], USERS_INTERVAL_MS)])
def test_a_finished_shard_is_due_again_after_its_interval(
    progress: SweepProgress, clock: Clock, shard: SweepShard, wait: int
) -> None:
    progress.claim(shard)
    progress.save(shard, ShardProgress(POSITION, 7), release=False)
    progress.finish(shard, ShardProgress(None, 9, began_at=NOW))
    if wait:
        clock.now += wait - 1
        assert progress.claim(shard) is None
        clock.now += 1
    assert progress.claim(shard) == ShardProgress(
        None, 0, began_at=EpochMs(clock.now), last_began_at=NOW
    )


def test_a_sweep_began_when_its_shard_was_first_claimed(
    progress: SweepProgress, clock: Clock
) -> None:
    """The next one looks at what has opened since, however many invocations this one takes."""
    progress.claim(SHARD)
    clock.now += LEASE_MS + 1
    claimed = progress.claim(SHARD)
    assert claimed is not None
    progress.finish(SHARD, claimed)
    clock.now += 1
    claimed = progress.claim(SHARD)
    assert claimed is not None
    assert (claimed.last_began_at, claimed.began_at) == (NOW, clock.now)


def test_active_connections_are_known_once_every_shard_was_swept(progress: SweepProgress) -> None:
    for count, shard in enumerate(CONNECTIONS):
        assert progress.active_connections() is None
        progress.claim(shard)
        progress.finish(shard, ShardProgress(active=count))
    assert progress.active_connections() == sum(range(len(CONNECTIONS)))
