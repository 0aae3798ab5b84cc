"""Herald's sender alone: recipients come in pages, as they do from the table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.peers.rounds import Meter, Round, serve
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Parcel
from chalicelib.delivery.sender import Sender
from chalicelib.protocol.reports import Result
from chalicelib.runtime.aws import Credentials
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient

PAGE = 1000
DEADLINE_SECONDS = 60.0


@contextmanager
def peer(endpoint: str) -> Iterator[Round]:
    sender = Sender(lambda: Credentials("key", "secret"), region="us-east-1")

    def send(meter: Meter, ids: Sequence[str], body: bytes) -> None:
        frames = (frame_of(body),)

        def pages() -> Iterator[list[Parcel]]:
            for start in range(0, len(ids), PAGE):
                yield [
                    Parcel(Recipient(connection_id, "user", None, endpoint), frames)
                    for connection_id in ids[start : start + PAGE]
                ]

        for outcome in sender.deliver(pages(), Deadline.after(DEADLINE_SECONDS)):
            if outcome.result is Result.DELIVERED:
                meter.count()

    yield send
    sender.close()


if __name__ == "__main__":
    serve(peer)
