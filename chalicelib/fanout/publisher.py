"""The publisher: puts a request's messages into the queue, one job for each shard of the audience.

It is apart from the worker, so that `messaging` depends on queueing jobs, not on running them.
"""

from collections.abc import Callable, Sequence

from chalicelib.auth.principal import Principal
from chalicelib.fanout.limits import DEFAULT_LIMITS, FanoutLimits
from chalicelib.fanout.progress import Progress
from chalicelib.fanout.queue import Job, Queue, Target
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Queued
from chalicelib.runtime.logs import correlation_id
from chalicelib.store.audience import Shard, Source, source_of
from chalicelib.store.schema import ROSTER_SHARDS

MAX_SHARDS = ROSTER_SHARDS


class FanoutPublisher:
    """Puts messages into the queue."""

    def __init__(
        self,
        *,
        progress: Progress,
        queue: Queue,
        active_connections: Callable[[], int | None],
        limits: FanoutLimits = DEFAULT_LIMITS,
    ) -> None:
        """Take the parts. `active_connections` returns the number of connections of all tenants,
        or None while it is unknown."""
        self._progress = progress
        self._queue = queue
        self._active_connections = active_connections
        self._limits = limits

    def publish(
        self, messages: Sequence[Message], sender: Principal, paid: int = 1
    ) -> list[Queued]:
        """Queue the messages of a request, for which the sender has paid so many units.

        Raises Unavailable. Some jobs may be queued then; a new try with the same message ids
        delivers nothing twice.
        """
        source = source_of([message.audience for message in messages])
        shards = 1
        if source is Source.EVERYONE:
            recipients = self._active_connections() or 0
            shards = shards_for(recipients, self._limits.shard_recipients)
        begun = self._progress.begin(messages, sender, shards, correlation_id(), paid=paid)
        requests = {messages[0].id: begun.content_bytes}
        self._queue.put(
            [
                Job(requests, Target(sender.tenant, source, Shard(shard, begun.shards)))
                for shard in range(begun.shards)
            ]
        )
        return [Queued(message.id) for message in messages]


def shards_for(recipients: int, shard_recipients: int = DEFAULT_LIMITS.shard_recipients) -> int:
    """Return the number of shards for an audience of so many recipients at most.

    Each is one or several shards of the roster. The number is a power of two, so that it rarely
    changes while connections come and go: jobs of several requests can be batched only if their
    requests have the same number of shards.
    """
    shards = 1
    while shards < MAX_SHARDS and shards * shard_recipients < recipients:
        shards *= 2
    return shards
