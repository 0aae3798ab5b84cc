"""Charges for queued messages: their senders pay for the frames that workers send.

A request was paid for in part before it was queued. The slices of its first shard use that up: what
is left after each is in the request's item. What a worker owes for less than a unit it keeps for
the sender's next slice.
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping

from chalicelib.clock import Clock, EpochMs
from chalicelib.delivery.parcel import Parcel
from chalicelib.errors import Unavailable
from chalicelib.fanout.progress import ClaimedMessages, ShardPosition
from chalicelib.protocol.cost import COPIES_PER_UNIT, Debt, sent_copies

REMEMBERED_SENDERS = 10_000

logger = logging.getLogger("herald.fanout")


class SentCopies:
    """The copies that a slice sends, by request."""

    def __init__(self, requests: Mapping[str, str]) -> None:
        """Take the request of each message, by their ids."""
        self._requests = requests
        self._copies: defaultdict[str, int] = defaultdict(int)

    def add(self, parcels: Iterable[Parcel]) -> None:
        """Count parcels. A frame with messages of several requests counts for the first one."""
        for parcel in parcels:
            for frame in parcel.frames:
                request = self._requests[frame.messages[0].id]
                self._copies[request] += sent_copies(len(frame.body))

    def of(self, request: str) -> int:
        """Return the copies of a request."""
        return self._copies[request]


Sent = tuple[ShardPosition, ClaimedMessages, int]
"""What a slice sent of a request: from where on, of what, and the copies."""


def paid_after(paid: int, sent: int) -> int:
    """Return the units that are left of those paid after a slice that sent so many copies."""
    return max(0, paid * COPIES_PER_UNIT - sent) // COPIES_PER_UNIT


class FanoutCharges:
    """Charges the senders of queued messages."""

    def __init__(self, owe: Callable[[str, EpochMs, Debt], None], *, now: Clock) -> None:
        """Take the parts. `owe` charges a debt to a user, by their key; see `Users.owe`."""
        self._owe = owe
        self._now = now
        self._remainders: OrderedDict[str, int] = OrderedDict()

    def charge(self, slices: Iterable[Sent]) -> None:
        """Charge what a slice sent of each request.

        What can't be charged now is charged with the sender's next slice, so that one sender's
        trouble doesn't stop the others' messages.
        """
        copies: defaultdict[str, int] = defaultdict(int)
        free_quota: defaultdict[str, int] = defaultdict(int)
        for start, claimed, sent in slices:
            if start.shard == 0:
                sent = max(0, sent - claimed.paid * COPIES_PER_UNIT)
                if not start.after:
                    free_quota[claimed.sender_key] += max(0, len(claimed.messages) - claimed.paid)
            copies[claimed.sender_key] += sent
        for sender_key, sent in copies.items():
            self._charge(sender_key, sent, free_quota[sender_key])

    def _charge(self, sender_key: str, copies: int, free_quota: int) -> None:
        copies += self._remainders.pop(sender_key, 0)
        units, remainder = divmod(copies, COPIES_PER_UNIT)
        if units:
            try:
                self._owe(sender_key, self._now(), Debt(units, max(0, units - free_quota)))
            except Unavailable as error:
                logger.error("a sender was not charged yet: %s", error.detail)
                remainder = copies
        if remainder:
            self._remainders[sender_key] = remainder
            if len(self._remainders) > REMEMBERED_SENDERS:
                self._remainders.popitem(last=False)
