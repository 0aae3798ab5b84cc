"""The values that a delivery takes and yields, and the port that carries it out."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from chalicelib.delivery.frames import Frame
from chalicelib.protocol.reports import Result
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient

RECORDING_SECONDS = 1.0  # the part of a deadline that is reserved for recording what came of it


class Parcel(NamedTuple):
    """The frames for one recipient, in order."""

    recipient: Recipient
    frames: tuple[Frame, ...]


class Outcome(NamedTuple):
    """The result of sending one frame to one recipient. `reason` is for reports and logs.

    `tries` counts the requests that got a response or failed. With 0, nothing is known about the
    recipient.
    """

    recipient: Recipient
    frame: Frame
    result: Result
    reason: str
    tries: int


class Delivery(Protocol):
    """The port to `@connections`, which `sender.Sender` implements."""

    def deliver(self, pages: Iterable[Sequence[Parcel]], deadline: Deadline) -> Iterator[Outcome]:
        """Send every parcel of every page; yield an outcome for each frame.

        A frame that is not delivered by the deadline is stale.
        """
        ...

    def post(
        self, connection_id: str, endpoint: str, body: bytes, deadline: Deadline
    ) -> Outcome | None:
        """Send one frame to one connection."""
        ...
