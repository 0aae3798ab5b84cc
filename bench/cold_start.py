"""Cold starts: a fresh process for each function, from its start to its first answer.

Beside it, in turns, a process that imports boto3 and makes one client: what hardly any function on
AWS can start without. Storage is the emulator, which is running.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.quick_mode import extent, keep
from chalicelib.auth.principal import Principal, Scope
from gateway.api.events import RestRequest, WebSocketContext
from gateway.aws.emulator import emulated_aws
from gateway.configuration import PROJECT
from gateway.tokens import token

ROUNDS = extent(15, 1)
SECRET = {"HERALD_JWT_SECRET": "x" * 32}
RESULT = Path(__file__).parent / "results" / "cold.json"
SDK = "boto3 and one client"

START = """
import json, sys
function, event = json.loads(sys.argv[1])
class LambdaContext:
    function_name, aws_request_id = function, "-"
    def get_remaining_time_in_millis(self):
        return 30000
import app
handler = app.app if function == "api_handler" else getattr(app, function)
handler(event, LambdaContext())
"""
START_SDK = 'import boto3; boto3.client("dynamodb")\n'
ANSWERED = "import os; os._exit(0)"  # what an interpreter does at its end, Lambda never waits for


def events() -> dict[str, Any]:
    """The first event of each function."""
    bearer = f"Bearer {token(SECRET, 'alice')}"
    scopes = frozenset({Scope.MESSAGES_SEND})
    principal = Principal("alice", int(time.time()) + 600, scopes=scopes)
    socket = WebSocketContext(
        stage="ws",
        domain_name="127.0.0.1:1",
        port=1,
        headers=[("Authorization", bearer)],
        query="",
        source_ip="127.0.0.1",
    )
    body = json.dumps({"to": {"users": ["nobody"]}, "data": 1}).encode()
    headers = [("Content-Type", "application/json"), ("Authorization", bearer)]
    post = RestRequest(
        method="POST",
        path="/messages",
        resource="/messages",
        path_parameters={},
        query="",
        headers=headers,
        body=body,
        source_ip="127.0.0.1",
        domain_name="127.0.0.1",
        port=1,
    )
    tick = {
        "version": "0", "id": "-", "account": "-", "region": "-", "time": "-", "source": "-",
        "detail-type": "-", "detail": {}, "resources": [],
    }  # fmt: skip
    authorizer = {"principalId": "alice", **principal.to_context()}
    handshake = socket.authorize()
    socket.authorizer = authorizer  # what the authorizer found goes with every event
    return {
        "connect_authorizer": handshake,
        "rest_authorizer": post.authorize(bearer),
        "on_ws_connect": socket.connect(),
        "on_ws_disconnect": socket.disconnect(1000, ""),
        "api_handler": post.proxy(authorizer, []),
        "sweep": tick,
        "deliver_queued": {"Records": []},
    }


def main() -> None:
    """Print each function's median, and its ratio to the SDK's."""
    loop = asyncio.new_event_loop()
    emulator = emulated_aws({})
    aws = loop.run_until_complete(emulator.__aenter__())
    try:
        times = _measure(aws)
    finally:
        loop.run_until_complete(emulator.__aexit__(None, None, None))
        loop.close()
    sdk = statistics.median(times[SDK])
    print(f"{'from a fresh process to its answer':34} {'ms':>8} {'of the SDK':>11}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:34} {median * 1000:>8.0f} {median / sdk:>11.2f}")
    medians = {name: statistics.median(of) * 1000 for name, of in times.items()}
    keep(RESULT, json.dumps({"rounds": ROUNDS, "medianMs": medians}, indent=1) + "\n")


def _measure(aws: Mapping[str, str]) -> dict[str, list[float]]:
    environment = {"PATH": os.environ["PATH"], **SECRET, **aws}
    commands = {SDK: [sys.executable, "-c", START_SDK + ANSWERED]}
    for function, event in events().items():
        commands[function] = [sys.executable, "-c", START + ANSWERED, json.dumps([function, event])]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(
                command, cwd=PROJECT, env=environment, check=True, stdout=subprocess.DEVNULL
            )
            times[name].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
