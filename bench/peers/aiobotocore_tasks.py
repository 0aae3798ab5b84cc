"""The peer aiobotocore: 64 asyncio tasks that share a client."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from bench.peers.rounds import Meter, Round, serve

TASKS = 64


@contextmanager
def peer(endpoint: str) -> Iterator[Round]:
    """Yield a function that sends one round to the endpoint."""
    config = AioConfig(max_pool_connections=TASKS)
    context = get_session().create_client(
        "apigatewaymanagementapi", endpoint_url=endpoint, config=config
    )

    async def send_all(meter: Meter, ids: Sequence[str], body: bytes) -> None:
        waiting = iter(ids)

        async def worker() -> None:
            for connection_id in waiting:
                await client.post_to_connection(ConnectionId=connection_id, Data=body)
                meter.count()

        await asyncio.gather(*(worker() for _ in range(TASKS)))

    with asyncio.Runner() as runner:
        client = runner.run(context.__aenter__())
        yield lambda meter, ids, body: runner.run(send_all(meter, ids, body))
        runner.run(context.__aexit__(None, None, None))


if __name__ == "__main__":
    serve(peer)
