"""ULIDs: ids of 26 characters that sort by time (https://github.com/ulid/spec)."""

import secrets

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
RANDOM_BITS = 80


class UlidFactory:
    """Makes ULIDs, each above every one that this factory made before.

    Two ids of one millisecond would sort either way by their random part, so the second is the
    first plus one, as the specification's monotonic factory has it. A clock that steps back
    doesn't step the ids back.
    """

    def __init__(self) -> None:
        self._last = 0

    def new(self, now: int) -> str:
        """An id for `now`, in epoch milliseconds."""
        fresh = now << RANDOM_BITS | secrets.randbits(RANDOM_BITS)
        if fresh >> RANDOM_BITS <= self._last >> RANDOM_BITS:
            fresh = self._last + 1
        self._last = fresh
        return "".join(ALPHABET[fresh >> shift & 31] for shift in range(125, -1, -5))
