"""Recipients and parcels for the tests of this folder."""

from collections.abc import Iterable, Sequence

from chalicelib.delivery.frames import Frame, frame_of
from chalicelib.delivery.parcel import Delivery, Outcome, Parcel
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient

FRAME = frame_of(b"frame")
SECONDS = 20.0


def recipient(endpoint: str, connection_id: str) -> Recipient:
    return Recipient(connection_id, "bob", None, endpoint)


def parcels(endpoint: str, ids: Iterable[str], frames: Sequence[Frame] = (FRAME,)) -> list[Parcel]:
    return [Parcel(recipient(endpoint, connection), tuple(frames)) for connection in ids]


def connection_ids(number: int) -> list[str]:
    return [f"c{index}=" for index in range(number)]


def deliver(
    delivery: Delivery, *pages: Sequence[Parcel], seconds: float = SECONDS
) -> list[Outcome]:
    return list(delivery.deliver(pages, Deadline.after(seconds)))
