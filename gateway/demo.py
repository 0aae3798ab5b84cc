"""`make demo`: connect real clients, post one message, and show who received it."""

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
CLIENTS = {"bob's phone": "bob", "bob's laptop": "bob", "carol": "carol"}
"""The user of each client."""


async def demo(configuration: Configuration) -> int:
    """Run the demo. Returns the exit status: 0 if every client received the message."""
    async with gateway(replace(configuration, host="127.0.0.1", port=0)) as running:
        print(f"Herald is running at {running.http}")
        async with contextlib.AsyncExitStack() as stack:
            clients = {}
            for name, user in CLIENTS.items():
                client = Herald(running.websocket, token(configuration.variables, user))
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        clients[name] = await stack.enter_async_context(client)
                except (HeraldError, TimeoutError) as error:
                    print(f"{name} could NOT connect: {error or 'no answer in time'}")
                    return 1
                print(f"{name} is connected")
            report = await _post(running, token(configuration.variables, "alice"))
            print(f"alice posted a message; the report: {json.dumps(report)}")
            messages = await asyncio.gather(*map(_receive, clients.values()))
    for name, message in zip(clients, messages, strict=True):
        print(f"{name} received {json.dumps(message) if message else 'NOTHING'}")
    return 0 if all(messages) else 1


async def _post(running: Running, bearer: str) -> Any:
    async with httpx.AsyncClient() as http:
        response = await http.post(
            f"{running.http}/messages",
            headers={"Authorization": f"Bearer {bearer}"},
            json={"to": {"users": ["bob", "carol"]}, "data": {"text": "Hello from Alice"}},
        )
    return response.json()


async def _receive(client: Herald) -> Any:
    """Return the next message; None if it doesn't come in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RECEIVE_SECONDS):
            return await anext(aiter(client))
