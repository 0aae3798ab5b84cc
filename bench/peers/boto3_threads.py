"""The peer boto3: 64 threads that share a client, the usual remedy for a loop that is too slow."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import boto3
from botocore.config import Config

from bench.peers.rounds import Meter, Round, serve

THREADS = 64


@contextmanager
def peer(endpoint: str) -> Iterator[Round]:
    """Yield a function that sends one round to the endpoint."""
    client = boto3.client(
        "apigatewaymanagementapi",
        endpoint_url=endpoint,
        config=Config(max_pool_connections=THREADS),
    )
    threads = ThreadPoolExecutor(THREADS)

    def send(meter: Meter, ids: Sequence[str], body: bytes) -> None:
        def post(connection_id: str) -> None:
            client.post_to_connection(ConnectionId=connection_id, Data=body)

        for _ in threads.map(post, ids):
            meter.count()

    with threads:
        yield send


if __name__ == "__main__":
    serve(peer)
