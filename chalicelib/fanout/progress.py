"""The progress of queued messages, from a request's 202 to the end of its delivery.

This module calls neither `@connections` nor the queue. The messages table has, for a day and for
each message, an item `message/<id>`: its sender, the counts so far, and some of the recipients that
were not reached. `failedBytes` bounds the size of these, so that the items of a request's hundred
messages fit into one transaction. The item of a request's first message, whose id is the request's,
also has the state of each shard of the audience:

- `at<shard>`: the position up to which the shard is delivered; absent when the shard is done;
- `claim<shard>`: the job that works on the shard; another job at the same position is a duplicate
  and gets dropped;
- `by<shard>`: the job that advanced the shard to `at<shard>`. SQS delivers that job again if its
  worker died before it re-queued the rest;
- `until<shard>`: the end of a job's last try. If the shard has not advanced by then, it has failed.

What a worker delivered is recorded once: the counts are written in one transaction with the new
position, on the condition that no other job has advanced the shard.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal, Scope, split_user_key
from chalicelib.clock import EpochMs
from chalicelib.errors import NotFound
from chalicelib.fanout.content import ContentLost, Contents, StoredContent
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import MAX_FAILED, MAX_FAILED_BYTES, Report, Result
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Action, Clause, number, put, update
from chalicelib.store.schema import (
    Item,
    message_key,
    queued_expires_at,
)

LAST_TRY_MS = aws_limits.CLAIM_MS

_FAILED_FIELDS = ("connectionId", "userId", "reason")


class ShardTaken(Exception):
    """Another job works on the shard, or the shard has advanced.

    `requeue_from` is the position that the job (or its duplicate) still has to re-queue, if any.
    """

    def __init__(self, requeue_from: str | None) -> None:
        super().__init__("another job works on the shard, or the shard has advanced")
        self.requeue_from = requeue_from


class ShardPosition(NamedTuple):
    """A position in a shard of a request's audience. `after` is the last recipient before it."""

    request: str
    shard: int
    after: str


class Begun(NamedTuple):
    """The number of shards of a request that was begun, and the size of its messages in bytes."""

    shards: int
    content_bytes: int


class ClaimedMessages(NamedTuple):
    """The messages that a job may deliver, and what is known of their request.

    `paid` is the number of units that its sender paid before it was queued, less those that slices
    of the first shard used up.
    """

    messages: list[Message]
    correlation_id: str | None
    sender_key: str
    paid: int


class Progress:
    """The queued messages of the last day. All methods raise Unavailable when storage is."""

    def __init__(self, store: Store, encryption: Encryption) -> None:
        self._store = store
        self._table = store.tables.messages
        self._contents = Contents(store, encryption)

    def begin(
        self,
        messages: Sequence[Message],
        sender: Principal,
        shards: int,
        correlation_id: str | None = None,
        *,
        paid: int = 1,
    ) -> Begun:
        """Store the messages of a request that will be delivered in `shards` shards.

        A request that an earlier try has begun keeps what was stored then.

        Args:
            messages: The messages of the request.
            sender: Who sent them.
            shards: The number of shards.
            correlation_id: For the logs of the workers.
            paid: The units that the sender has paid.
        """
        request, now = messages[0].id, messages[0].timestamp
        expires_at = queued_expires_at(now)
        stored, content_bytes = self._contents.put(messages, expires_at)
        common: Item = {
            "sender": {"S": sender.key},
            "request": {"S": request},
            "parts": number(stored.parts),
            "sealed": {"BOOL": stored.sealed},
            "shards": number(shards),
            "paid": number(paid),
            "expiresAt": number(expires_at),
        }
        if correlation_id is not None:
            common["correlation"] = {"S": correlation_id}
        starts: Item = {f"at{shard}": {"S": ""} for shard in range(shards)}
        new = Clause(when=("attribute_not_exists(id)",))
        actions = [
            put(
                self._table,
                {
                    **common,
                    **(starts if message.id == request else {}),
                    **message_key(message.id),
                },
                new,
            )
            for message in messages
        ]
        try:
            self._store.transact(actions)
        except Cancelled as cancelled:
            begun = cancelled.items[0]
            assert begun is not None  # noqa: S101 - a request's items are written all at once
            shards = int(begun["shards"]["N"])
        return Begun(shards, content_bytes)

    def claim(
        self, start: ShardPosition, job_id: str, last_try: EpochMs | None = None
    ) -> ClaimedMessages:
        """Claim a shard at `start` for a job, and return the messages to deliver.

        Args:
            last_try: The time, if SQS will not deliver the job again.

        Raises:
            ShardTaken: Another job works on the shard, or the shard has advanced.
            ContentLost: The messages can't be read any more.
        """
        attributes = _attributes(start.shard)
        clauses = [
            Clause(
                set=("#claim = :job",),
                when=("#at = :after", "attribute_not_exists(#claim) OR #claim = :job"),
                names={"#claim": attributes["claim"], "#at": attributes["at"]},
                values={":job": {"S": job_id}, ":after": {"S": start.after}},
            )
        ]
        if last_try is not None:
            clauses.append(
                Clause(
                    set=("#until = :until",),
                    names={"#until": attributes["until"]},
                    values={":until": number(last_try + LAST_TRY_MS)},
                )
            )
        action = update(self._table, message_key(start.request), *clauses)
        try:
            item = self._store.update(action, ReturnValues="ALL_NEW")
        except Cancelled as cancelled:
            if not cancelled.items[0]:
                raise ContentLost("a job's messages have expired") from None
            raise ShardTaken(_requeue_from(cancelled.items[0], start.shard, job_id)) from None
        stored = StoredContent(int(item["parts"]["N"]), item["sealed"]["BOOL"])
        correlation_id = item["correlation"]["S"] if "correlation" in item else None
        paid = int(item["paid"]["N"]) if "paid" in item else 1  # queued by an earlier version
        messages = self._contents.get(start.request, stored)
        return ClaimedMessages(messages, correlation_id, item["sender"]["S"], paid)

    def advance(
        self,
        start: ShardPosition,
        job_id: str,
        end: str | None,
        reports: Sequence[Report],
        *,
        paid: int = 0,
    ) -> str | None:
        """Record what a job delivered from `start` up to `end`, which is None for the shard's end.

        `paid` is what is left of the units that were paid before; the first shard uses them up.

        Returns the position that has to be re-queued, or None. It is `end`, unless a duplicate of
        the job has advanced the shard.
        """
        for with_failed in (True, False):  # without, if an item has no room for more
            actions = self._advance(start, job_id, end, reports, paid=paid, with_failed=with_failed)
            try:
                if len(actions) == 1:
                    self._store.update(actions[0])
                else:
                    self._store.transact(actions)
                return end
            except Cancelled as cancelled:
                state = cancelled.items[0]
        assert state is not None  # noqa: S101 - only the first action has a condition left
        return _requeue_from(state, start.shard, job_id)

    def _advance(
        self,
        start: ShardPosition,
        job_id: str,
        end: str | None,
        reports: Sequence[Report],
        *,
        paid: int,
        with_failed: bool,
    ) -> list[Action]:
        """Return the actions of `advance`; the first one updates the shard's state."""
        attributes = _attributes(start.shard)
        values: Item = {":job": {"S": job_id}, ":after": {"S": start.after}}
        if end is None:
            sets, removes = ["#by = :job"], ["#claim", "#until", "#at"]
        else:
            sets, removes = ["#by = :job", "#at = :end"], ["#claim", "#until"]
            values[":end"] = {"S": end}
        if start.shard == 0:
            sets.append("paid = :paid")
            values[":paid"] = number(paid)
        state = Clause(
            set=sets,
            remove=removes,
            when=("#at = :after AND #claim = :job",),
            names={f"#{name}": attribute for name, attribute in attributes.items()},
            values=values,
        )
        counts = {report.id: _counts(report, with_failed=with_failed) for report in reports}
        first = update(self._table, message_key(start.request), state, *counts.pop(start.request))
        others = [
            update(self._table, message_key(message_id), *clauses)
            for message_id, clauses in counts.items()
            if clauses
        ]
        return [first, *others]

    def of(self, message_id: str, reader: Principal, now: EpochMs) -> dict[str, object]:
        """Return a message's report so far.

        Raises:
            NotFound: The message was not queued in the last day, or not in the reader's tenant.
            InsufficientScope: The reader is neither the sender nor may manage connections.
        """
        item = self._item(message_id)
        tenant = item and split_user_key(item["sender"]["S"])[0]
        if item is None or tenant != reader.tenant or int(item["expiresAt"]["N"]) * 1000 <= now:
            raise NotFound("no message with this id was queued in the last 24 hours")
        if item["sender"]["S"] != reader.key:
            reader.require(Scope.CONNECTIONS_MANAGE)
        request = item["request"]["S"]
        state = item if request == message_id else self._item(request) or {}
        total = int(item["shards"]["N"])
        unfinished = [shard for shard in range(total) if f"at{shard}" in state]
        failed = [shard for shard in unfinished if _has_failed(state, shard, now)]
        return {
            **_report(message_id, item).to_dict(),
            "done": len(unfinished) == len(failed),
            "shards": {
                "total": total,
                "done": total - len(unfinished),
                "failed": len(failed),
            },
        }

    def _item(self, message_id: str) -> Item | None:
        return self._store.get(self._table, message_key(message_id))


def _attributes(shard: int) -> dict[str, str]:
    """Return the names of the attributes with a shard's state."""
    return {name: f"{name}{shard}" for name in ("at", "claim", "by", "until")}


def _requeue_from(state: Mapping[str, Any], shard: int, job_id: str) -> str | None:
    """Return the position that the job (or its duplicate) still has to re-queue, or None.

    Only the job that advanced the shard re-queues the rest of it.
    """
    attributes = _attributes(shard)
    advanced = state.get(attributes["by"], {}).get("S") == job_id
    return state[attributes["at"]]["S"] if advanced and attributes["at"] in state else None


def _has_failed(state: Mapping[str, Any], shard: int, now: EpochMs) -> bool:
    """Return whether the last try of an unfinished shard is over."""
    until = f"until{shard}"
    return until in state and int(state[until]["N"]) < now


def _report(message_id: str, item: Item) -> Report:
    report = Report(message_id)
    for result in Result:
        report.counts[result] = int(item[result]["N"]) if result in item else 0
    report.failed += [
        {name: entry["M"][name]["S"] for name in _FAILED_FIELDS}
        for entry in item.get("failed", {"L": []})["L"][:MAX_FAILED]
    ]
    return report


def _counts(report: Report, *, with_failed: bool) -> list[Clause]:
    """Return the clauses that add a report to its message's item."""
    counts = {str(result): count for result, count in report.counts.items() if count}
    if not counts:
        return []
    clauses = [
        Clause(
            add=tuple(f"#{name} :{name}" for name in counts),
            names={f"#{name}": name for name in counts},
            values={f":{name}": number(count) for name, count in counts.items()},
        )
    ]
    if report.failed and with_failed:
        entries = [
            {"M": {name: {"S": entry[name]} for name in _FAILED_FIELDS}} for entry in report.failed
        ]
        clauses.append(
            Clause(
                set=("#failed = list_append(if_not_exists(#failed, :empty), :failed)",),
                add=("failedBytes :bytes",),
                when=(
                    "attribute_not_exists(#failed)"
                    " OR (size(#failed) < :most AND failedBytes < :mostBytes)",
                ),
                names={"#failed": "failed"},
                values={
                    ":empty": {"L": []},
                    ":failed": {"L": entries},
                    ":bytes": number(report.failed_bytes),
                    ":most": number(MAX_FAILED),
                    ":mostBytes": number(MAX_FAILED_BYTES),
                },
            )
        )
    return clauses
