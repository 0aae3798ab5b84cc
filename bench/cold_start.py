"""Cold starts: the time from the start of a function's process to its first answer.

    .venv/bin/python -m bench.cold_start

Each row is the median of fifteen fresh processes. The first is a process that imports boto3 and
makes one client, which hardly any function on AWS can do without; the other rows are also given as
multiples of it. They took turns, so that a slow moment of the machine affects all rows alike.
DynamoDB is the emulator, which is running already.
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

from bench.bound import bounded
from bench.quick_mode import full_or_quick, write_result
from chalicelib.auth.principal import Principal, Scope
from gateway.api.events import RestRequest, WebSocketContext
from gateway.aws.emulator import emulated_aws
from gateway.configuration import PROJECT
from gateway.tokens import token

ROUNDS = full_or_quick(15, 1)
SECRET = {"HERALD_JWT_SECRET": "x" * 32}
RESULT = Path(__file__).parent / "results" / "cold_start.json"
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
EXIT = "import os; os._exit(0)"  # Lambda never waits for an interpreter to shut down


def events() -> dict[str, Any]:
    """Return the first event of each function."""
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
    scheduled = {
        "version": "0", "id": "-", "account": "-", "region": "-", "time": "-", "source": "-",
        "detail-type": "-", "detail": {}, "resources": [],
    }  # fmt: skip
    authorizer = {"principalId": "alice", **principal.to_context()}
    handshake = socket.authorize()
    socket.authorizer = authorizer  # the authorizer's answer is part of every later event
    return {
        "connect_authorizer": handshake,
        "rest_authorizer": post.authorize(bearer),
        "on_ws_connect": socket.connect(),
        "on_ws_disconnect": socket.disconnect(1000, ""),
        "api_handler": post.proxy(authorizer, []),
        "sweep": scheduled,
        "deliver_queued": {"Records": []},
    }


@bounded(minutes=15)
def main() -> None:
    """Print each function's median, and its ratio to the SDK's; write the medians."""
    loop = asyncio.new_event_loop()
    emulator = emulated_aws({})
    aws = loop.run_until_complete(emulator.__aenter__())
    try:
        times = _measure(aws)
    finally:
        loop.run_until_complete(emulator.__aexit__(None, None, None))
        loop.close()
    sdk = statistics.median(times[SDK])
    print(f"{'from the process to its answer':34} {'ms':>8} {'of the SDK':>11}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:34} {median * 1000:>8.0f} {median / sdk:>11.2f}")
    medians = {name: statistics.median(of) * 1000 for name, of in times.items()}
    write_result(RESULT, json.dumps({"rounds": ROUNDS, "medianMs": medians}, indent=1) + "\n")


def _measure(aws: Mapping[str, str]) -> dict[str, list[float]]:
    environment = {"PATH": os.environ["PATH"], **SECRET, **aws}
    commands = {SDK: [sys.executable, "-c", START_SDK + EXIT]}
    for function, event in events().items():
        commands[function] = [sys.executable, "-c", START + EXIT, json.dumps([function, event])]
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
