"""`make bench`: everything that is measured."""

from bench import cold_start, end_to_end, fanout, flood, load, memory, queued, resume
from bench.stub import stub

if __name__ == "__main__":
    with stub() as running:
        fanout.main(running)
        print()
        memory.main(running)
        end_to_end.main(running)
    print()
    flood.main()
    print()
    queued.main()
    print()
    resume.main()
    print()
    cold_start.main()
    print()
    load.main()
