"""Puts a request's messages into the queue: one job for each shard of their audience."""

from collections.abc import Callable, Sequence

from chalicelib.auth.principal import Principal
from chalicelib.fanout.progress import Progress
from chalicelib.fanout.queue import Job, Queue, Route
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Queued
from chalicelib.runtime.logs import correlation_id
from chalicelib.store.audience import Shard, Source, source_of

SHARD_RECIPIENTS = 10_000  # about a second of one worker's time


MAX_SHARDS = 64


class FanoutPublisher:
    """Puts messages into the queue."""

    def __init__(
        self, *, progress: Progress, queue: Queue, active_connections: Callable[[], int | None]
    ) -> None:
        """`active_connections` returns how many there are, or None while that is unknown."""
        self._progress = progress
        self._queue = queue
        self._active_connections = active_connections

    def publish(self, messages: Sequence[Message], sender: Principal) -> list[Queued]:
        """Queue a request's messages. Raises Unavailable; then it is not said that they are
        queued, and whoever tries again with the same ids does nothing twice."""
        source = source_of([message.audience for message in messages])
        shards = shards_for(self._active_connections() or 0) if source is Source.EVERYONE else 1
        shards, size = self._progress.begin(messages, sender, shards, correlation_id())
        routes = [Route(sender.tenant, source, Shard(shard, shards)) for shard in range(shards)]
        self._queue.put([Job({messages[0].id: size}, route) for route in routes])
        return [Queued(message.id) for message in messages]


def shards_for(recipients: int) -> int:
    """How many parts an audience is cut into: a power of two, so that those of one table, which
    grows and shrinks, are mostly cut alike, and can be read together."""
    shards = 1
    while shards < MAX_SHARDS and shards * SHARD_RECIPIENTS < recipients:
        shards *= 2
    return shards
