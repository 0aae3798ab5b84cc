"""Runs the simulations with new seeds: `python -m tests.fuzz.simulations SECONDS`.

Prints a seed that breaks a promise. `python -m tests.fuzz.simulations 0 NAME SEED` runs it again,
with the traceback.
"""

import itertools
import logging
import random
import sys
import time

from tests.simulation import delivery, disconnects
from tests.simulation.seeds import Simulate, first_failure

SIMULATIONS: dict[str, Simulate] = {
    "delivery": delivery.simulate,
    "disconnects": disconnects.simulate,
}
SEEDS_AT_A_TIME = 500


def explore(seconds: float) -> str | None:
    """Simulate for a number of seconds; return the first failure."""
    end = time.monotonic() + seconds
    seeds = itertools.count(random.SystemRandom().randrange(10**9))
    runs = 0
    while time.monotonic() < end:
        chosen = list(itertools.islice(seeds, SEEDS_AT_A_TIME))
        for name, simulate in SIMULATIONS.items():
            if failure := first_failure(simulate, chosen):
                again = failure.split(":")[0].removeprefix("seed ")
                return (
                    f"{name}: {failure}\n"
                    f"Run it again: .venv/bin/python -m tests.fuzz.simulations 0 {name} {again}"
                )
            runs += len(chosen)
    print(f"simulations: {runs} runs without a failure")
    return None


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    if len(sys.argv) == 4:
        SIMULATIONS[sys.argv[2]](int(sys.argv[3]))
    elif failed := explore(float(sys.argv[1])):
        sys.exit(failed)
