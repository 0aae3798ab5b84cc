"""ULIDs: ids of 26 characters that sort by time (https://github.com/ulid/spec)."""

import secrets
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from chalicelib.clock import EpochMs

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
RANDOM_BITS = 80
CHARACTERS = 26


class Stamp(NamedTuple):
    """The time at which a request was accepted, and the seed of its messages' ids.

    Each id is its predecessor plus one, as in the specification's monotonic factory, so the ids of
    a request rise. The seed is random: consecutive ids in two requests would tell one sender that
    another was sending at that moment.
    """

    now: EpochMs
    seed: int

    @classmethod
    def fresh(cls, now: EpochMs) -> "Stamp":
        """Return the stamp of a request that is accepted at `now`, with a random seed."""
        return cls(now, secrets.randbits(RANDOM_BITS))

    def ids(self) -> Iterator[str]:
        """Yield the ids of the request's messages, without end."""
        first = self.now << RANDOM_BITS | self.seed
        return (_encoded(first + number) for number in count())


def earliest(timestamp: EpochMs) -> str:
    """Return the lowest id of a time."""
    return _encoded(max(0, timestamp) << RANDOM_BITS)


def timestamp_of(ulid: str) -> EpochMs:
    """Return an id's time. Raises ValueError for text that isn't a ULID."""
    if len(ulid) != CHARACTERS or ulid[0] > "7":  # 128 bits: the first character has three
        raise ValueError("not a ULID")
    value = 0
    for character in ulid:
        value = value << 5 | ALPHABET.index(character)
    return EpochMs(value >> RANDOM_BITS)


def _encoded(ulid: int) -> str:
    return "".join(ALPHABET[ulid >> shift & 31] for shift in range(125, -1, -5))
