"""What each event costs in DynamoDB: calls and units, as AWS counts them.

`tests/unit/test_bill.py` measures each of them, and `bench.simulate` adds them up to a month, so
neither can differ from the code. The units of indexes are among them. Connections have ids and
endpoints as API Gateway makes them; users have ids of 36 characters and a tenant.
"""

from typing import NamedTuple


class Units(NamedTuple):
    """Calls, write units and read units."""

    calls: int
    writes: int
    reads: float = 0.0

    def plus(self, *others: "Units") -> "Units":
        """Return the sum."""
        return Units(*map(sum, zip(self, *others, strict=True)))


# --- Connections

OPEN = Units(calls=3, writes=4)  # the connection and its index entry, its roster entry, the user
END = Units(calls=3, writes=4)  # the same
OPEN_IN_A_GROUP = Units(calls=3, writes=5)
END_IN_A_GROUP = Units(calls=4, writes=6, reads=1)  # and its past memberships
HEARTBEAT = Units(calls=1, writes=1)  # the connection

# --- Frames

PING = Units(calls=0, writes=0)  # API Gateway answers it
FRAME = {1: Units(calls=1, writes=1), 2: Units(calls=1, writes=1), 10: Units(calls=1, writes=2)}
"""A frame alone, by the number of its user's connections: their ties are in the user's item."""
HISTORY = Units(calls=1, writes=1)  # of a message of up to a KB to one user, one group or everyone
RECIPIENTS = Units(calls=1, writes=0, reads=1)  # of a message to a user
RESUME = Units(calls=4, writes=1, reads=3)  # for a user in one group; little was missed

# --- Broadcasts

ROSTER_SHARDS = 8
ROSTER = Units(calls=ROSTER_SHARDS, writes=0, reads=ROSTER_SHARDS)  # of a tenant's few connections
ROSTER_ENTRY_BYTES = 210  # of a connection
QUEUED = Units(calls=5, writes=6)  # frame, history with its reference, content, progress
JOB = Units(calls=3, writes=2, reads=1)  # of the queue: claim, content, counts

# --- The sweep, of a connection

CONNECTION_BYTES = 510
UNPROVEN = Units(calls=0, writes=0, reads=0.5)  # the user of one without a heartbeat yet
LAGGING = Units(calls=1, writes=1, reads=0.5)  # one whose frames only its user has seen
TIED = Units(calls=0, writes=0, reads=1.05)  # each hour: whether a user's connection is there

EVENTS = {
    "a ping": PING,
    "a heartbeat": HEARTBEAT,
    "a frame of a user with one or two connections": FRAME[2],
    "a frame of a user with ten": FRAME[10],
    "a message to one user: frame, history, recipients": FRAME[1].plus(HISTORY, RECIPIENTS),
    "a handshake and its end": OPEN.plus(END),
    "the same, in one group": OPEN_IN_A_GROUP.plus(END_IN_A_GROUP),
    "a resume, in one group": RESUME,
    "a message to all of a tenant with ten connections": FRAME[1].plus(HISTORY, ROSTER),
}
"""What `docs/scale.md` shows."""
