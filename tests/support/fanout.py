"""A scene for tests of the fan-out: connected users, messages that are all queued, and a test that
plays SQS."""

import json
from typing import Any

from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs
from chalicelib.fanout.limits import FanoutLimits
from chalicelib.runtime.deadlines import Deadline
from tests.support.tables import empty
from tests.support.world import LIFE, NEVER, Aws, Handler, Herald, World

JSON = {"content-type": "application/json"}
EVERYBODY: dict[str, Any] = {"to": {"all": True}, "data": "hello"}
SENDER = Principal(
    "alice", 10**12, scopes=frozenset({Scope.MESSAGES_SEND, Scope.MESSAGES_BROADCAST})
)
PEOPLE = 7
SHARDS = 2
LIMITS = FanoutLimits(shard_recipients=4, page_items=2, slice_seconds=0.0)
"""A slice is one page of two recipients, and seven people are two shards."""


class FanoutScene:
    """`people` users with a connection each."""

    def __init__(self, client: Any, people: int = PEOPLE) -> None:
        empty(client, LIFE)
        self.world = World()
        self.aws = Aws(client, self.world)
        self.world.estimate = people
        for number in range(people):
            socket = self.world.connect(f"user-{number}")
            self.herald().lifecycle.on_connect(socket.event())
            socket.state = "open"

    def herald(self, client: Any = None) -> Herald:
        return Herald(client or self.aws, self.world, inline=-1, fanout_limits=LIMITS)

    def post(self, body: Any = EVERYBODY, sender: Principal = SENDER) -> list[str]:
        """Queue messages; return their ids."""
        reply = self.herald().submissions.submit(
            sender, JSON, json.dumps(body), Deadline.after(NEVER)
        )
        assert reply.status == 202
        self.world.now += 1
        return [message["id"] for message in json.loads(reply.body)["messages"]]

    def receive(self, count: int = 1) -> list[Any]:
        """Return the next jobs as SQS delivers them; they stay in the queue until deleted."""
        records = self.world.queue[:count]
        for record in records:
            receives = int(record["attributes"]["ApproximateReceiveCount"]) + 1
            record["attributes"]["ApproximateReceiveCount"] = str(receives)
        return records

    def work(self, count: int = 1, seconds: float = NEVER) -> list[str]:
        """Invoke the worker once; return the ids of the jobs that failed."""
        records = self.receive(count)
        failed = self.herald().worker.work(records, Deadline.after(seconds))
        self.delete(records, failed)
        return failed

    def start(self, records: list[Any]) -> Handler:
        """Start a worker that stops before each of its calls."""
        deadline = Deadline.after(NEVER)
        return Handler(self.aws, lambda client: self.herald(client).worker.work(records, deadline))

    def delete(self, records: list[Any], failed: list[str]) -> None:
        """Delete the jobs that did not fail, as Lambda does."""
        for record in records:
            if record["messageId"] not in failed and record in self.world.queue:
                self.world.queue.remove(record)

    def work_off(self, count: int = 1) -> int:
        """Work until the queue is empty; return the number of invocations."""
        invocations = 0
        while self.world.queue:
            assert self.work(count) == []
            invocations += 1
            assert invocations < 200
        return invocations

    def progress(self, message_id: str) -> Any:
        return self.herald().progress.of(message_id, SENDER, EpochMs(self.world.now))

    def assert_done(self, message_id: str, people: int = PEOPLE) -> None:
        report = self.progress(message_id)
        assert report["done"]
        assert report["shards"]["failed"] == 0
        assert (report["recipients"], report["delivered"]) == (people, people)
        assert len(self.world.received) == people
        assert all(message_id in received for received in self.world.received.values())
