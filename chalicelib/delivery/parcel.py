"""What delivery takes and gives: parcels, outcomes, and the port that carries them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from chalicelib.delivery.frames import Frame
from chalicelib.protocol.reports import Result
from chalicelib.store.items import Recipient


class Parcel(NamedTuple):
    """What one recipient shall get: frames, in order."""

    recipient: Recipient
    frames: tuple[Frame, ...]


class Outcome(NamedTuple):
    """What became of one frame for one recipient. `reason` is for reports and logs.

    `tries` counts the answers that were waited for. With none, nothing is known of the recipient.
    """

    recipient: Recipient
    frame: Frame
    result: Result
    reason: str
    tries: int


class Delivery(Protocol):
    """The port to `@connections`, which `sender.Sender` implements."""

    def deliver(self, pages: Iterable[Sequence[Parcel]], deadline: float) -> Iterator[Outcome]:
        """Send every parcel of every page; yield an outcome for each frame.

        `deadline` is in `time.monotonic` seconds: a frame that is not delivered by then is stale.
        """
        ...

    def post(
        self, connection_id: str, endpoint: str, body: bytes, deadline: float
    ) -> Outcome | None:
        """Send one frame to one connection."""
        ...
