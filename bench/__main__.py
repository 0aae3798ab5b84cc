"""Runs every benchmark, one after the other: `make bench`, or `python -m bench`.

One that reaches its bound ends, and the next one begins; the exit status says that one did.
"""

import sys
from collections.abc import Callable
from functools import partial

from bench import (
    cold_start,
    end_to_end,
    fanout,
    flood,
    load,
    memory,
    neighbours,
    queued,
    resume,
    roster,
)
from bench.bound import BoundReached
from bench.stub import stub


def _ended_early(benchmark: Callable[[], object]) -> bool:
    """Run a benchmark. Returns whether it has reached its bound."""
    try:
        benchmark()
    except BoundReached as reached:
        print(f"\n{reached}", flush=True)
        return True
    print(flush=True)
    return False


def main() -> int:
    """Run every benchmark; return how many have reached their bounds."""
    with stub() as running_stub:
        to_stub = (fanout.main, memory.main, end_to_end.main)
        ended = sum(_ended_early(partial(benchmark, running_stub)) for benchmark in to_stub)
    others = (flood, neighbours, queued, resume, roster, cold_start, load)
    return ended + sum(_ended_early(module.main) for module in others)


if __name__ == "__main__":
    sys.exit(main())
