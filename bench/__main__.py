"""Runs every benchmark, one after the other: `make bench`, or `python -m bench`."""

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
)
from bench.stub import stub

if __name__ == "__main__":
    with stub() as running_stub:
        fanout.main(running_stub)
        print()
        memory.main(running_stub)
        end_to_end.main(running_stub)
    for benchmark in (flood, neighbours, queued, resume, cold_start, load):
        print()
        benchmark.main()
