"""`Idempotency-Key`: a request that is sent twice is carried out once.

See https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/. The first request
with a key claims it; its response is stored, and returned for every later request with the key. A
function that dies in between leaves a claim that runs out. The next try then carries the request
out under the same message ids, so that clients drop the messages that they already have.
"""

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from chalicelib import aws_limits
from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs, epoch_ms
from chalicelib.errors import IdempotencyKeyReused, RequestInProgress
from chalicelib.protocol.reports import Reply
from chalicelib.protocol.strict_json import encode
from chalicelib.protocol.ulid import Stamp
from chalicelib.store.dynamodb import Cancelled, Store
from chalicelib.store.expressions import Clause, number, update
from chalicelib.store.schema import idempotency_expires_at, idempotency_id

CLAIM_MS = aws_limits.CLAIM_MS
MAX_BODY_BYTES = aws_limits.ITEM_CONTENT_BYTES  # compressed

Body = dict[str, Any]
"""The body of a response, as the object that is written as JSON."""


class Claim(NamedTuple):
    """The right to carry a request out, until `until`."""

    item_id: str
    stamp: Stamp
    until: EpochMs


class Idempotency:
    """The keys of the last day. Every method raises Unavailable if storage is unavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(self, sender: Principal, key: str, request: object, stamp: Stamp) -> Claim | Reply:
        """Claim a key for a request, or return the response that the request had.

        The claim's stamp is that of the request's first try.

        Raises:
            IdempotencyKeyReused: The key belongs to another request.
            RequestInProgress: Another function is carrying the request out.
        """
        claim = Claim(idempotency_id(sender.key, key), stamp, EpochMs(stamp.now + CLAIM_MS))
        digest = hashlib.sha256(encode(request, sort_keys=True)).hexdigest()
        unused = Clause(
            when=("attribute_not_exists(id) OR expiresAt <= :now",),  # TTL may take days
            values={":now": number(stamp.now // 1000)},
        )
        claimed = _setting(
            digest={"S": digest},
            acceptedAt=number(stamp.now),
            seed=number(stamp.seed),
            claimedUntil=number(claim.until),
            expiresAt=number(idempotency_expires_at(stamp.now)),
        )
        try:
            self._write(claim, claimed, unused, Clause(remove=("answer",)))
        except Cancelled as cancelled:
            return self._repeat(claim, digest, cancelled.items[0] or {})
        return claim

    def finish(self, claim: Claim, body: Body, status: int) -> None:
        """Store the response, for later requests with the key."""
        packed = zlib.compress(encode(body))
        if len(packed) > MAX_BODY_BYTES:  # thousands of failures: keep their counts only
            messages = [{**message, "failed": []} for message in body["messages"]]
            packed = zlib.compress(encode({**body, "messages": messages}))
        response = _setting(answer={"B": packed}, status=number(status))
        self._write_if_held(claim, claim.until, response)

    def release(self, claim: Claim) -> None:
        """Let the next try begin at once, since the request was not carried out to its end."""
        self._write_if_held(claim, claim.until, _setting(claimedUntil=number(0)))

    def forget(self, claim: Claim) -> None:
        """Free the key for any request, since nothing of this one was carried out."""
        accepted_at = claim.until - CLAIM_MS
        self._write_if_held(claim, claim.until, _setting(expiresAt=number(accepted_at // 1000)))

    def _repeat(self, claim: Claim, digest: str, stored: Mapping[str, Any]) -> Claim | Reply:
        """Return the claim or the response of a request whose key was used before."""
        if stored["digest"]["S"] != digest:
            raise IdempotencyKeyReused("this Idempotency-Key was used with another body")
        if "answer" in stored:
            return Reply(
                zlib.decompress(stored["answer"]["B"]), int(stored["status"]["N"]), replayed=True
            )
        until = epoch_ms(stored["claimedUntil"]["N"])
        stamp = Stamp(epoch_ms(stored["acceptedAt"]["N"]), int(stored["seed"]["N"]))
        if stamp == claim.stamp and until == claim.until:
            return claim  # our own: the SDK wrote it twice, since the first response was lost
        taken_over = _setting(claimedUntil=number(claim.until))
        if until > claim.stamp.now or not self._write_if_held(claim, until, taken_over):
            raise RequestInProgress(
                "a request with this Idempotency-Key is in progress", retry_after=1.0
            )
        return claim._replace(stamp=stamp)

    def _write_if_held(self, claim: Claim, until: EpochMs, clause: Clause) -> bool:
        """Write if the key is still claimed until `until`, and return whether it was."""
        held = Clause(
            when=("claimedUntil = :until AND attribute_not_exists(answer)",),
            values={":until": number(until)},
        )
        try:
            self._write(claim, clause, held)
        except Cancelled:
            return False
        return True

    def _write(self, claim: Claim, *clauses: Clause) -> None:
        self._store.update(
            update(self._store.tables.messages, {"id": {"S": claim.item_id}}, *clauses)
        )


def _setting(**values: Any) -> Clause:
    """Return a clause that sets attributes to typed values."""
    return Clause(
        set=tuple(f"#{name} = :{name}" for name in values),
        names={f"#{name}": name for name in values},
        values={f":{name}": value for name, value in values.items()},
    )
