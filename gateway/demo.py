"""`make demo`: real clients, one message, and who received it."""

import asyncio
import contextlib
import json
from dataclasses import replace
from typing import Any

import httpx

from clients.python.herald_client import Herald, HeraldError
from gateway.configuration import Configuration
from gateway.server import Running, gateway
from gateway.tokens import token

CONNECT_SECONDS = 30.0
RECEIVE_SECONDS = 10.0


async def demo(configured: Configuration) -> int:
    """Bob on two devices, Carol on one; Alice posts to both. 0 when all three received it."""
    async with gateway(replace(configured, host="127.0.0.1", port=0)) as running:
        print(f"Herald is running at {running.http}")
        async with contextlib.AsyncExitStack() as stack:
            clients = {}
            for name, user in (("bob's phone", "bob"), ("bob's laptop", "bob"), ("carol", "carol")):
                client = Herald(running.websocket, token(configured.environment, user))
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        clients[name] = await stack.enter_async_context(client)
                except (HeraldError, TimeoutError) as error:
                    print(f"{name} could NOT connect: {error or 'no answer in time'}")
                    return 1
                print(f"{name} is connected")
            report = await _post(running, token(configured.environment, "alice"))
            print(f"alice posted a message; the report: {json.dumps(report)}")
            received = await asyncio.gather(*map(_receive, clients.values()))
    for name, message in zip(clients, received, strict=True):
        print(f"{name} received {json.dumps(message) if message else 'NOTHING'}")
    return 0 if all(received) else 1


async def _post(running: Running, alice: str) -> Any:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{running.http}/messages",
            headers={"Authorization": f"Bearer {alice}"},
            json={"to": {"users": ["bob", "carol"]}, "data": {"text": "Hello from Alice"}},
        )
    return answer.json()


async def _receive(client: Herald) -> Any:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RECEIVE_SECONDS):
            return await anext(aiter(client))
