"""What became of a message: a report, a note that it is queued, an error with reports."""

from dataclasses import dataclass, field
from enum import StrEnum

from chalicelib.errors import Unavailable

MAX_FAILED = 100  # entries of a report's `failed`


class Result(StrEnum):
    """What became of one delivery; the values are the counts of a report."""

    DELIVERED = "delivered"
    GONE = "gone"
    STALE = "stale"
    REJECTED = "rejected"


@dataclass(slots=True)
class Report:
    """What became of one message. `recipients` is the sum of the four counts, by construction."""

    id: str
    counts: dict[Result, int] = field(default_factory=lambda: dict.fromkeys(Result, 0))
    failed: list[dict[str, str]] = field(default_factory=list)

    def add(self, connection_id: str, user_id: str, result: Result, reason: str) -> None:
        """Count one recipient; a failed one is named while there is room for it."""
        self.counts[result] += 1
        if result is not Result.DELIVERED and len(self.failed) < MAX_FAILED:
            entry = {"connectionId": connection_id, "userId": user_id, "reason": reason}
            self.failed.append(entry)

    def to_dict(self) -> dict[str, object]:
        return {
            "id": self.id,
            "recipients": sum(self.counts.values()),
            **{str(result): count for result, count in self.counts.items()},
            "failed": self.failed,
        }


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that waits in the queue, and is delivered from there."""

    id: str

    def to_dict(self) -> dict[str, object]:
        return {"id": self.id, "queued": True}


class Interrupted(Unavailable):
    """Storage failed while messages were being sent; `reports` say how far they came."""

    def __init__(self, error: Unavailable, reports: list[Report]) -> None:
        super().__init__(error.detail, retry_after=error.retry_after)
        self.reports = reports


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose status is its own, or that of a request which had been carried out before."""

    body: bytes
    status: int
    replayed: bool = False
