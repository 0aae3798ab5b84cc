"""The protocol between `bench.fanout` and the peers in Python.

A peer is a process: `python -m bench.peers.NAME ENDPOINT PAYLOAD RECIPIENTS`. It prints `ready`.
Then it runs a round for each line on its standard input, and prints the figures as a line of JSON.
Its connections stay open between the rounds.
"""

import json
import random
import resource
import string
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

ID_CHARACTERS = string.ascii_letters + string.digits + "-_"


class Meter:
    """Counts deliveries, and records the times of the first and the last one."""

    def __init__(self) -> None:
        self.delivered = 0
        self.first = self.last = 0.0

    def count(self, number: int = 1) -> None:
        """Record that deliveries have succeeded."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.delivered += number


Round = Callable[[Meter, Sequence[str], bytes], None]
Peer = Callable[[str], AbstractContextManager[Round]]
"""Takes an endpoint; its context yields the function that sends a round to it."""


def connection_ids(number: int) -> list[str]:
    """Return connection ids that look like those of API Gateway."""
    chosen = random.Random(1)
    return ["".join(chosen.choices(ID_CHARACTERS, k=15)) + "=" for _ in range(number)]


def serve(peer: Peer) -> None:
    """Run rounds of `peer` until the standard input ends."""
    endpoint, payload, recipients = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ids, body = connection_ids(recipients), b"x" * payload
    with peer(endpoint) as send:
        print("ready", flush=True)
        for _ in sys.stdin:
            print(json.dumps(_figures(send, ids, body)), flush=True)


def _figures(send: Round, ids: Sequence[str], body: bytes) -> dict[str, float]:
    meter = Meter()
    started, cpu = time.perf_counter(), time.process_time()
    send(meter, ids, body)
    cpu = time.process_time() - cpu
    if meter.delivered != len(ids):
        raise SystemExit(f"{meter.delivered} of {len(ids)} messages were delivered")
    return {
        "seconds": meter.last - started,
        "first_ms": (meter.first - started) * 1000,
        "cpu_seconds": cpu,
        "rss_mb": peak_memory(),
    }


def peak_memory() -> float:
    """Return the peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
