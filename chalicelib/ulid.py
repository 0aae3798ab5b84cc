"""ULIDs: ids of 26 characters that sort by time (https://github.com/ulid/spec)."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
RANDOM_BITS = 80


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a request was accepted, in epoch milliseconds, and where the ids of its messages begin.

    Each id is the one before plus one, as the specification's monotonic factory has it, so that
    they rise within a request. Between requests chance decides: ids that were neighbours would
    tell one sender that another sent just then.
    """

    now: int
    seed: int

    @classmethod
    def fresh(cls, now: int) -> "Stamp":
        """A request that is accepted now."""
        return cls(now, secrets.randbits(RANDOM_BITS))

    def ids(self) -> Iterator[str]:
        """The ids of its messages."""
        first = self.now << RANDOM_BITS | self.seed
        return (_encoded(first + number) for number in count())


def _encoded(ulid: int) -> str:
    return "".join(ALPHABET[ulid >> shift & 31] for shift in range(125, -1, -5))
