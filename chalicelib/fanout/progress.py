"""How far queued messages have come: what is kept of a request from its 202 on.

No `@connections` here, and no queue. In the messages table a request has, for a day:

- `content/<id>/<n>`: its messages, as the workers read them, in parts of a size that an item takes;
- `message/<id>` for each message: whose it is, the counts so far, and who was not reached. That of
  the first message, whose id is the request's, also has the state of each shard of the audience:

  - `at<shard>`: where the rest of the shard begins; absent when nothing is left of it;
  - `claim<shard>`: the job that works there; another job for the same is a double, and dropped;
  - `by<shard>`: the job that came as far as `at`. SQS brings it again when its worker died before
    it could put the rest into the queue;
  - `until<shard>`: a job is tried for the last time. If `at` is still there then, it has failed.

So whatever a worker has done is written once, in one transaction with the position up to which it
is done, on the condition that nobody else has written it.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal, Scope, split_user_key
from chalicelib.errors import HeraldError, NotFound
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import MAX_FAILED, Report, Result
from chalicelib.protocol.strict_json import encode
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Action, Clause, number, put, update
from chalicelib.store.items import Item

KEPT_SECONDS = 24 * 60 * 60
CONTENT_BYTES = aws_limits.ITEM_CONTENT_BYTES  # in one item
LAST_TRY_MS = aws_limits.VISIBILITY_SECONDS * 1000  # longer than a worker lives

_FAILURE = ("connectionId", "userId", "reason")


class ContentLost(HeraldError):
    """A job's messages are not there: they were kept for a day, or its keys are not any more."""


class ShardTaken(Exception):
    """The place is not this job's. `rest` is where to go on from, if that is for it to see to."""

    def __init__(self, rest: str | None) -> None:
        super().__init__("another job has come, or comes, so far")
        self.rest = rest


@dataclass(frozen=True, slots=True)
class ShardPosition:
    """Where a job works: a shard of a request, from `after` on."""

    request: str
    shard: int
    after: str


class Claimed(NamedTuple):
    """What a job may deliver; the correlation id is that of the request which brought it."""

    messages: list[Message]
    correlation_id: str | None


class Progress:
    """The queued messages of the last day. All methods raise Unavailable when storage is."""

    def __init__(self, store: Store, encryption: Encryption) -> None:
        self._store = store
        self._table = store.tables.messages
        self._encryption = encryption

    def begin(
        self,
        messages: Sequence[Message],
        sender: Principal,
        shards: int,
        correlation_id: str | None = None,
    ) -> tuple[int, int]:
        """Store messages that shall be delivered in so many shards; these, and the messages' bytes.

        `correlation_id` is for the logs of whoever delivers them.

        A request that was begun before, and whose first try has died since, keeps its shards.
        """
        request, now = messages[0].id, messages[0].timestamp
        expires = number(now // 1000 + KEPT_SECONDS)
        content = encode([message.to_dict() for message in messages])
        sealed = any(message.encrypted for message in messages)
        # Not both: how well it compressed would say something of what is encrypted.
        packed = self._encryption.seal(content) if sealed else zlib.compress(content)
        parts = range(0, len(packed), CONTENT_BYTES)
        for index, start in enumerate(parts):
            item: Item = {
                "id": {"S": f"content/{request}/{index}"},
                "part": {"B": packed[start : start + CONTENT_BYTES]},
                "expiresAt": expires,
            }
            self._store.put(self._table, item)
        common: Item = {
            "sender": {"S": sender.key},
            "request": {"S": request},
            "parts": number(len(parts)),
            "sealed": {"BOOL": sealed},
            "shards": number(shards),
            "expiresAt": expires,
        }
        if correlation_id is not None:
            common["correlation"] = {"S": correlation_id}
        starts: Item = {f"at{shard}": {"S": ""} for shard in range(shards)}
        new = Clause(when=("attribute_not_exists(id)",))
        actions = [
            put(
                self._table,
                {**common, **(starts if message.id == request else {}), **_key(message.id)},
                new,
            )
            for message in messages
        ]
        try:
            self._store.transact(actions)
        except Cancelled as cancelled:
            begun = cancelled.items[0]
            assert begun is not None  # noqa: S101 - all of a request are stored at once
            shards = int(begun["shards"]["N"])
        return shards, len(content)

    def claim(self, place: ShardPosition, job: str, last_try: int | None = None) -> Claimed:
        """The messages that a job has to deliver, from its place on.

        `last_try` is the clock, in epoch milliseconds, where SQS will not bring the job again.
        Raises ShardTaken where the place is not this job's, or not any more, and ContentLost.
        """
        names = _names(place)
        held = Clause(
            set=("#claim = :job",),
            when=("#at = :after", "attribute_not_exists(#claim) OR #claim = :job"),
            names={"#claim": names["claim"], "#at": names["at"]},
            values={":job": {"S": job}, ":after": {"S": place.after}},
        )
        parts = [held]
        if last_try is not None:
            until = number(last_try + LAST_TRY_MS)
            parts.append(
                Clause(
                    set=("#until = :until",),
                    names={"#until": names["until"]},
                    values={":until": until},
                )
            )
        action = update(self._table, _key(place.request), *parts)
        try:
            item = self._store.update(action, ReturnValues="ALL_NEW")
        except Cancelled as cancelled:
            if not cancelled.items[0]:
                raise ContentLost("a job's messages are not kept any more") from None
            raise ShardTaken(_rest(cancelled.items[0], place, job)) from None
        correlation = item["correlation"]["S"] if "correlation" in item else None
        return Claimed(self._messages(place.request, item), correlation)

    def advance(
        self, place: ShardPosition, job: str, position: str | None, reports: Sequence[Report]
    ) -> str | None:
        """Note what a job has done up to `position`, None for the end; where to go on from.

        When that was noted before, by a double of the job, it is that one's position.
        """
        for with_names in (True, False):  # of whom was not reached, while there is room for them
            actions = self._advances(place, job, position, reports, with_names=with_names)
            try:
                if len(actions) == 1:
                    self._store.update(actions[0])
                else:
                    self._store.transact(actions)
                return position
            except Cancelled as cancelled:
                state = cancelled.items[0]
        assert state is not None  # noqa: S101 - the first action is the only one with a condition
        return _rest(state, place, job)

    def of(self, message_id: str, reader: Principal, now: int) -> dict[str, object]:
        """A message's report so far, for its sender or who may manage. `now`: epoch milliseconds.

        Raises NotFound, also for what is another tenant's; InsufficientScope.
        """
        item = self._item(message_id)
        tenant = item and split_user_key(item["sender"]["S"])[0]
        if item is None or tenant != reader.tenant or int(item["expiresAt"]["N"]) * 1000 <= now:
            raise NotFound("no message with this id is in the queue, or was on this day")
        if item["sender"]["S"] != reader.key:
            reader.require(Scope.CONNECTIONS_MANAGE)
        request = item["request"]["S"]
        state = item if request == message_id else self._item(request) or {}
        shards = range(int(item["shards"]["N"]))
        unfinished = [shard for shard in shards if f"at{shard}" in state]
        lost = [
            shard
            for shard in unfinished
            if f"until{shard}" in state and int(state[f"until{shard}"]["N"]) < now
        ]
        report = Report(message_id)
        for result in Result:
            report.counts[result] = int(item[result]["N"]) if result in item else 0
        report.failed += [
            {name: entry["M"][name]["S"] for name in _FAILURE}
            for entry in item.get("failed", {"L": []})["L"][:MAX_FAILED]
        ]
        return {
            **report.to_dict(),
            "done": len(unfinished) == len(lost),
            "shards": {
                "total": len(shards),
                "done": len(shards) - len(unfinished),
                "failed": len(lost),
            },
        }

    def _advances(
        self,
        place: ShardPosition,
        job: str,
        position: str | None,
        reports: Sequence[Report],
        *,
        with_names: bool,
    ) -> list[Action]:
        by_id = {report.id: report for report in reports}
        own = by_id.pop(place.request)
        names = _names(place)
        state = Clause(
            set=("#by = :job", *(("#at = :position",) if position is not None else ())),
            remove=("#claim", "#until", *(("#at",) if position is None else ())),
            when=("#at = :after AND #claim = :job",),
            names={f"#{name}": attribute for name, attribute in names.items()},
            values={
                ":job": {"S": job},
                ":after": {"S": place.after},
                **({":position": {"S": position}} if position is not None else {}),
            },
        )
        first = update(
            self._table, _key(place.request), state, *_counts(own, with_names=with_names)
        )
        others = [
            update(self._table, _key(report.id), *counts)
            for report in by_id.values()
            if (counts := _counts(report, with_names=with_names))
        ]
        return [first, *others]

    def _messages(self, request: str, item: Item) -> list[Message]:
        ids = [f"content/{request}/{index}" for index in range(int(item["parts"]["N"]))]
        found = {
            part["id"]["S"]: bytes(part["part"]["B"])
            for page in self._store.batch_get(self._table, "id", ids)
            for part in page
        }
        try:
            packed = b"".join(found[part] for part in ids)
            sealed = item["sealed"]["BOOL"]
            content = self._encryption.unseal(packed) if sealed else zlib.decompress(packed)
        except KeyError:
            raise ContentLost("a job's messages, or the key to them, are not there") from None
        return [Message.from_dict(fields) for fields in json.loads(content)]

    def _item(self, message_id: str) -> Item | None:
        return self._store.get(self._table, _key(message_id))


def _key(message_id: str) -> Item:
    return {"id": {"S": f"message/{message_id}"}}


def _names(place: ShardPosition) -> dict[str, str]:
    """The attributes of a shard's state."""
    return {name: f"{name}{place.shard}" for name in ("at", "claim", "by", "until")}


def _rest(state: Mapping[str, Any], place: ShardPosition, job: str) -> str | None:
    """Where the rest begins that a job, done by itself or its double, has to see into the queue."""
    names = _names(place)
    done = state.get(names["by"], {}).get("S") == job
    return state[names["at"]]["S"] if done and names["at"] in state else None


def _counts(report: Report, *, with_names: bool) -> list[Clause]:
    """What a report adds to its message's item."""
    counts = {str(result): count for result, count in report.counts.items() if count}
    if not counts:
        return []
    parts = [
        Clause(
            add=tuple(f"#{name} :{name}" for name in counts),
            names={f"#{name}": name for name in counts},
            values={f":{name}": number(count) for name, count in counts.items()},
        )
    ]
    if report.failed and with_names:
        entries = [{"M": {name: {"S": one[name]} for name in _FAILURE}} for one in report.failed]
        parts.append(
            Clause(
                set=("#failed = list_append(if_not_exists(#failed, :none), :failed)",),
                when=("attribute_not_exists(#failed) OR size(#failed) < :enough",),
                names={"#failed": "failed"},
                values={
                    ":none": {"L": []},
                    ":failed": {"L": entries},
                    ":enough": number(MAX_FAILED),
                },
            )
        )
    return parts
