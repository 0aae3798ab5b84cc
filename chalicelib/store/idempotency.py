"""`Idempotency-Key`: a request that comes twice is carried out once.

As https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/ has it. Who comes
first claims the key; their answer is kept, and given to all who come later. A handler that dies in
between leaves a claim that runs out: the next try then carries the request out with the ids that it
had, so that whoever got a message already drops it.
"""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal
from chalicelib.errors import IdempotencyKeyReused, RequestInProgress
from chalicelib.protocol.reports import Reply
from chalicelib.protocol.strict_json import encode
from chalicelib.protocol.ulid import Stamp
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update

KEPT_SECONDS = 24 * 60 * 60
CLAIM_MS = aws_limits.CLAIM_MS
MAX_ANSWER_BYTES = aws_limits.ITEM_CONTENT_BYTES  # compressed

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to carry a request out, until `until` (epoch milliseconds)."""

    item_id: str
    stamp: Stamp
    until: int


class Idempotency:
    """The keys of the last day. All methods raise Unavailable when storage is."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(self, sender: Principal, key: str, request: object, stamp: Stamp) -> Claim | Reply:
        """Claim a key for a request, or the answer that it had.

        The claim's stamp is the first try's. Raises IdempotencyKeyReused when another request had
        the key, and RequestInProgress while this one is carried out.
        """
        name = hashlib.sha256(key.encode()).hexdigest()
        claim = Claim(f"key/{sender.key}/{name}", stamp, stamp.now + CLAIM_MS)
        digest = hashlib.sha256(encode(request, sort_keys=True)).hexdigest()
        unused = Clause(
            when=("attribute_not_exists(id) OR expiresAt <= :now",),  # TTL takes its time
            values={":now": number(stamp.now // 1000)},
        )
        begun = _setting(
            digest={"S": digest},
            acceptedAt=number(stamp.now),
            seed=number(stamp.seed),
            claimedUntil=number(claim.until),
            expiresAt=number(stamp.now // 1000 + KEPT_SECONDS + 1),
        )
        try:
            self._write(claim, begun, unused, Clause(remove=("answer",)))
        except Cancelled as cancelled:
            return self._again(claim, digest, cancelled.items[0] or {})
        return claim

    def finish(self, claim: Claim, answer: Answer, status: int) -> None:
        """Keep the answer and its status, for whoever asks again."""
        body = zlib.compress(encode(answer))
        if len(body) > MAX_ANSWER_BYTES:  # thousands of failures by name: their number must do
            messages = [{**message, "failed": []} for message in answer["messages"]]
            body = zlib.compress(encode({**answer, "messages": messages}))
        self._write_held(claim, claim.until, _setting(answer={"B": body}, status=number(status)))

    def give_up(self, claim: Claim) -> None:
        """The request was not carried out to its end: the next try may begin at once."""
        self._write_held(claim, claim.until, _setting(claimedUntil=number(0)))

    def forget(self, claim: Claim) -> None:
        """Nothing of the request was carried out: the key is free for any."""
        now = claim.until - CLAIM_MS
        self._write_held(claim, claim.until, _setting(expiresAt=number(now // 1000)))

    def _again(self, claim: Claim, digest: str, stored: Mapping[str, Any]) -> Claim | Reply:
        """What there is for a request that is not the first with its key."""
        if stored["digest"]["S"] != digest:
            raise IdempotencyKeyReused("the Idempotency-Key came with another body before")
        if "answer" in stored:
            return Reply(
                zlib.decompress(stored["answer"]["B"]), int(stored["status"]["N"]), replayed=True
            )
        until = int(stored["claimedUntil"]["N"])
        stamp = Stamp(int(stored["acceptedAt"]["N"]), int(stored["seed"]["N"]))
        if stamp == claim.stamp and until == claim.until:
            return claim  # ours: the SDK wrote it twice, since the first answer was lost
        taken = _setting(claimedUntil=number(claim.until))
        if until > claim.stamp.now or not self._write_held(claim, until, taken):
            raise RequestInProgress(
                "a request with this Idempotency-Key is being carried out", retry_after=1.0
            )
        return replace(claim, stamp=stamp)

    def _write_held(self, claim: Claim, until: int, part: Clause) -> bool:
        """Write, if the claim is still the one that runs out at `until`; whether it was."""
        held = Clause(
            when=("claimedUntil = :until AND attribute_not_exists(answer)",),
            values={":until": number(until)},
        )
        try:
            self._write(claim, part, held)
        except Cancelled:
            return False
        return True

    def _write(self, claim: Claim, *parts: Clause) -> None:
        self._store.update(
            update(self._store.tables.messages, {"id": {"S": claim.item_id}}, *parts)
        )


def _setting(**values: Any) -> Clause:
    """Attributes set to typed values."""
    return Clause(
        set=tuple(f"#{name} = :{name}" for name in values),
        names={f"#{name}": name for name in values},
        values={f":{name}": value for name, value in values.items()},
    )
