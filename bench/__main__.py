"""`make bench`: everything that is measured."""

from bench import cold, fanout, flood, load, memory, queued, resume, whole_path
from bench.stub import stub

if __name__ == "__main__":
    with stub() as running:
        fanout.main(running)
        print()
        memory.main(running)
        whole_path.main(running)
    print()
    flood.main()
    print()
    queued.main()
    print()
    resume.main()
    print()
    cold.main()
    print()
    load.main()
