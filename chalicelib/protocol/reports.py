"""The answers to a request with messages: reports of delivery, notes of queueing, replies."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from chalicelib.errors import Unavailable

MAX_FAILED = 100  # entries of a report's `failed`
MAX_FAILED_BYTES = 19 * 1024
"""The size of a report's `failed`: a hundred entries with names of 128 bytes.

Twice as much for each message of a request fits into DynamoDB's transactions (see
`fanout/progress.py`), and this much, with `\\u` escapes, into Lambda's answers.
"""
FAILED_ENTRY_BYTES = 42  # of an entry, in addition to its values


class Result(StrEnum):
    """The result of delivering to one recipient; the values are the names of a report's counts."""

    DELIVERED = "delivered"
    GONE = "gone"
    STALE = "stale"
    REJECTED = "rejected"


@dataclass(slots=True)
class Report:
    """The delivery of one message, in numbers; `recipients` is computed as their sum.

    `stored` is False if the history should have kept the message and could not.
    """

    id: str
    counts: dict[Result, int] = field(default_factory=lambda: dict.fromkeys(Result, 0))
    failed: list[dict[str, str]] = field(default_factory=list)
    stored: bool = True
    failed_bytes: int = 0

    def add(self, connection_id: str, user_id: str, result: Result, reason: str) -> None:
        """Count one recipient; list a failed one while there is room for it in `failed`."""
        self.counts[result] += 1
        if result is Result.DELIVERED or len(self.failed) >= MAX_FAILED:
            return
        entry = {"connectionId": connection_id, "userId": user_id, "reason": reason}
        size = FAILED_ENTRY_BYTES + sum(len(value.encode()) for value in entry.values())
        if self.failed_bytes + size <= MAX_FAILED_BYTES:
            self.failed.append(entry)
            self.failed_bytes += size

    def to_dict(self) -> dict[str, object]:
        """Return the message's entry in an answer."""
        return {
            "id": self.id,
            "recipients": sum(self.counts.values()),
            **{str(result): count for result, count in self.counts.items()},
            "failed": self.failed,
            **({} if self.stored else {"stored": False}),
        }


class Queued(NamedTuple):
    """A message that was put into the queue; workers deliver it. For `stored` see `Report`."""

    id: str
    stored: bool = True

    def to_dict(self) -> dict[str, object]:
        """Return the message's entry in an answer."""
        return {"id": self.id, "queued": True, **({} if self.stored else {"stored": False})}


class Interrupted(Unavailable):
    """Storage failed while messages were being sent; `reports` has what was sent until then."""

    def __init__(self, error: Unavailable, reports: list[Report]) -> None:
        super().__init__(error.detail, retry_after=error.retry_after)
        self.reports = reports


class Reply(NamedTuple):
    """The answer to a request; `replayed` if it is the stored answer of an earlier request."""

    body: bytes
    status: int
    replayed: bool = False
