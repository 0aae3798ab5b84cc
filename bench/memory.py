"""Herald's peak memory for a small audience and a large one, which is created page by page."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.bound import bounded
from bench.peers.rounds import peak_memory
from bench.quick_mode import full_or_quick
from bench.stub import CLIENT_CORE, Stub, pin
from chalicelib.delivery.frames import frame_of
from chalicelib.delivery.parcel import Parcel
from chalicelib.delivery.sender import Sender
from chalicelib.protocol.reports import Result
from chalicelib.runtime.aws import Credentials
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.items import Recipient

AUDIENCES = (1000, full_or_quick(100_000, 2000))
PAGE = 1000
DEADLINE_SECONDS = 120.0


@bounded(minutes=10)
def main(stub: Stub) -> None:
    """Print both peaks, and the difference."""
    peaks = [_in_a_process(stub, recipients) for recipients in AUDIENCES]
    for recipients, peak in zip(AUDIENCES, peaks, strict=True):
        print(f"{recipients:>8,} recipients: {peak:.1f} MB at most")
    print(f"The larger audience takes {peaks[1] - peaks[0]:.1f} MB more")


def _in_a_process(stub: Stub, recipients: int) -> float:
    finished = subprocess.run(
        [sys.executable, "-m", "bench.memory", stub.endpoint(0), str(recipients)],
        env={**os.environ, "AWS_CA_BUNDLE": str(stub.authority)},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    peak: float = json.loads(finished.stdout)
    return peak


def _deliver(endpoint: str, recipients: int) -> None:
    pin(CLIENT_CORE)
    sender = Sender(lambda: Credentials("key", "secret"), region="us-east-1")
    frames = (frame_of(b"x" * 200),)

    def pages() -> Iterator[list[Parcel]]:
        for start in range(0, recipients, PAGE):
            yield [
                Parcel(Recipient(f"{number:015}=", f"user-{number}", None, endpoint), frames)
                for number in range(start, start + PAGE)
            ]

    delivered = 0
    for outcome in sender.deliver(pages(), Deadline.after(DEADLINE_SECONDS)):
        delivered += outcome.result is Result.DELIVERED
    if delivered != recipients:
        raise SystemExit(f"{delivered} of {recipients} were delivered")
    print(json.dumps(peak_memory()))
    sender.close()


if __name__ == "__main__":
    _deliver(sys.argv[1], int(sys.argv[2]))
