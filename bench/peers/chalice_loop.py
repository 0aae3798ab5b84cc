"""The peer Chalice: `app.websocket_api.send` in a loop.

https://aws.github.io/chalice/topics/websockets.html
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import boto3
from chalice.app import Chalice

from bench.peers.rounds import Meter, Round, serve


@contextmanager
def peer(endpoint: str) -> Iterator[Round]:
    """Yield a function that sends one round to the endpoint."""
    app = Chalice("bench")
    app.experimental_feature_flags.update(["WEBSOCKETS"])
    app.websocket_api.session = boto3.Session()
    domain, _, stage = endpoint.removeprefix("https://").partition("/")
    app.websocket_api.configure(domain, stage)

    def send(meter: Meter, ids: Sequence[str], body: bytes) -> None:
        message = body.decode()
        for connection_id in ids:
            app.websocket_api.send(connection_id, message)
            meter.count()

    yield send


if __name__ == "__main__":
    serve(peer)
