"""ULIDs: ids of 26 characters that sort by time (https://github.com/ulid/spec)."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
RANDOM_BITS = 80
CHARACTERS = 26


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


def earliest(moment: int) -> str:
    """The lowest id of a moment, which is in epoch milliseconds."""
    return _encoded(max(0, moment) << RANDOM_BITS)


def moment_of(ulid: str) -> int:
    """When an id was made, in epoch milliseconds. Raises ValueError for what is none."""
    if len(ulid) != CHARACTERS or ulid[0] > "7":  # 128 bits, of which the first has three
        raise ValueError("not a ULID")
    value = 0
    for character in ulid:
        value = value << 5 | ALPHABET.index(character)
    return value >> RANDOM_BITS


def _encoded(ulid: int) -> str:
    return "".join(ALPHABET[ulid >> shift & 31] for shift in range(125, -1, -5))
