"""Herald's delivery beside its peers: many connections reached through the same stub, over TLS.

    make bench                # or `python -m bench`: runs this among the others

Peers are Chalice's own loop, boto3 in threads, aiobotocore, and the AWS SDK for JavaScript. Each is
a process on one core; the stub is on another. In each configuration (latency, payload, recipients)
every peer first does an uncounted round, in which it opens its connections; then the peers take
turns. `wrk` repeats one constant, unsigned request on 256 sockets: the ceiling of the core. Ten
milliseconds of latency allow these sockets 25,600 answers a second, whatever the core can do.

A row has the medians of a peer's rounds: deliveries per second, processor time per delivery, peak
memory, and when the first and the last delivery were done (`cold ms`: the last of the uncounted
round). The right columns are Herald's rate and processor time as multiples of the peer's.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.bound import bounded
from bench.quick_mode import full_or_quick, write_result
from bench.stub import CLIENT_CORE, Stub, pin

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fanout.json"
PYTHON = sys.executable
PEERS_PYTHON = str(HERE.parent / ".venv" / "bench" / "bin" / "python")

PEERS: dict[str, list[str]] = {
    "herald": [PYTHON, "-m", "bench.peers.herald"],
    "chalice": [PYTHON, "-m", "bench.peers.chalice_loop"],
    "boto3": [PYTHON, "-m", "bench.peers.boto3_threads"],
    "aiobotocore": [PEERS_PYTHON, "-m", "bench.peers.aiobotocore_tasks"],
    "aws-sdk-js-v3": ["node", str(HERE / "peers" / "node" / "peer.mjs")],
}
SDKS = ("boto3", "aiobotocore", "aws-sdk-js-v3")
END_SECONDS = 10
CEILING = "wrk"
CEILING_SECONDS = 2
CEILING_CONNECTIONS = full_or_quick(256, 16)

LATENCIES_MS = full_or_quick((10, 0), (10,))
PAYLOADS = full_or_quick((200, 4096, 32768), (200,))
RECIPIENTS = full_or_quick((1000, 10_000), (100,))
TARGET = (10, 200, max(RECIPIENTS))
SEQUENTIAL_RECIPIENTS = 1000
"""The recipients of Chalice's loop, except at the target: its rate doesn't depend on their number,
and it is slow."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one peer in one configuration; times are milliseconds since a round began."""

    name: str
    latency_ms: int
    payload: int
    recipients: int
    per_second: float
    cpu_us: float
    rss_mb: float
    first_ms: float | None
    last_ms: float | None
    cold_last_ms: float | None
    """The end of the first round, which opens the connections."""


class Peer:
    """A peer's process, for one configuration."""

    def __init__(self, name: str, arguments: Sequence[str], stub: Stub, recipients: int) -> None:
        self.name = name
        self.recipients = recipients
        self.rounds: list[dict[str, float]] = []
        authority = str(stub.authority)
        self._process = subprocess.Popen(
            [*PEERS[name], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parent,
            preexec_fn=lambda: pin(CLIENT_CORE),
            env={
                **os.environ,
                "AWS_CA_BUNDLE": authority,
                "NODE_EXTRA_CA_CERTS": authority,
                "NODE_NO_WARNINGS": "1",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "NO_PROXY": "127.0.0.1",
            },
        )
        self._read()  # it is ready

    def round(self) -> None:
        """Have the peer send to every recipient once."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.rounds.append(json.loads(self._read()))

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} exited with {self._process.wait()}")
        return line

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # it is in the middle of a round
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def figures(self, latency_ms: int, payload: int) -> Figures:
        cold, *warm = self.rounds

        def median(name: str) -> float:
            return statistics.median(each[name] for each in warm or [cold])

        return Figures(
            self.name,
            latency_ms,
            payload,
            self.recipients,
            per_second=round(self.recipients / median("seconds"), 1),
            cpu_us=round(median("cpu_seconds") / self.recipients * 1e6, 1),
            rss_mb=round(max(each["rss_mb"] for each in self.rounds), 1),
            first_ms=round(median("first_ms"), 1),
            last_ms=round(median("seconds") * 1000, 1),
            cold_last_ms=round(cold["seconds"] * 1000, 1),
        )


def measure(stub: Stub, latency_ms: int, payload: int, recipients: int) -> list[Figures]:
    """Measure all peers in one configuration."""
    at_target = (latency_ms, payload, recipients) == TARGET
    with ExitStack() as stack:
        peers = []
        for name in PEERS:
            number = recipients
            if name == "chalice" and not at_target:
                number = min(number, SEQUENTIAL_RECIPIENTS)
            arguments = (stub.endpoint(latency_ms), str(payload), str(number))
            peer = Peer(name, arguments, stub, number)
            stack.callback(peer.close)
            peers.append(peer)
        ceilings = []
        for turn in range(6 if at_target else 4):
            for peer in peers:
                if turn < _rounds(peer.name, at_target):
                    peer.round()
            if turn:
                ceilings.append(_ceiling(stub, latency_ms, payload))
    per_second, cpu_us, rss_mb = (
        round(statistics.median(figure), 1) for figure in zip(*ceilings, strict=True)
    )
    ceiling = Figures(
        CEILING, latency_ms, payload, recipients, per_second, cpu_us, rss_mb, None, None, None
    )
    return [*(peer.figures(latency_ms, payload) for peer in peers), ceiling]


def _rounds(name: str, at_target: bool) -> int:
    """Return a peer's number of rounds. The first counts only if it is the only one."""
    if name == "herald":
        return 6 if at_target else 4
    if name == "chalice":
        return 1  # it opens one connection, so its first round is like any other
    return 4 if at_target else 2


def _ceiling(stub: Stub, latency_ms: int, payload: int) -> tuple[float, float, float]:
    """Run wrk. Return its requests per second, CPU µs per request and peak memory in MB."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f'wrk.method = "POST"\nwrk.body = string.rep("x", {payload})\n')
        script.write(
            "done = function(summary) io.stderr:write(summary.requests, ' ', summary.duration, "
            "' ', summary.errors.status + summary.errors.read + summary.errors.timeout) end\n"
        )
        script.flush()
        process = subprocess.Popen(
            [
                "wrk",
                "-t1",
                f"-c{CEILING_CONNECTIONS}",
                f"-d{CEILING_SECONDS}s",
                f"-s{script.name}",
                f"{stub.endpoint(latency_ms)}/@connections/AAAAAAAAAAAAAAA%3D",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: pin(CLIENT_CORE),
        )
        assert process.stderr
        answered, microseconds, errors = map(int, process.stderr.read().split())
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if errors or process.returncode:
            raise SystemExit(f"wrk had {errors} errors and exited with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return answered / microseconds * 1e6, cpu / answered * 1e6, usage.ru_maxrss / 1024


def table(figures: Sequence[Figures]) -> str:
    """Return a configuration's figures as a table, with Herald relative to each peer."""
    herald = figures[0]
    lines = [
        f"\n{herald.latency_ms} ms away, {herald.payload} B, {herald.recipients:,} recipients",
        f"{'':14} {'per s':>9} {'CPU µs':>8} {'MB':>6} {'first ms':>9} {'last ms':>9}"
        f" {'cold ms':>9}   Herald's rate   its CPU",
    ]
    for each in figures:
        columns = [
            f"{each.name:14}",
            f"{each.per_second:>9,.0f}",
            f"{each.cpu_us:>8.1f}",
            f"{each.rss_mb:>6.0f}",
            *(
                format("" if value is None else f"{value:,.1f}", ">9")
                for value in (each.first_ms, each.last_ms, each.cold_last_ms)
            ),
            f"{herald.per_second / each.per_second:>12.2f} ×",
            f"{herald.cpu_us / each.cpu_us:>10.3f} ×",
        ]
        if each.recipients != herald.recipients:
            columns.append(f"({each.recipients:,} recipients)")
        lines.append(" ".join(columns))
    return "\n".join(lines)


def verdict(figures: Sequence[Figures]) -> str:
    """Return Herald's ratios to its peers in a sentence."""
    by_name = {each.name: each for each in figures}
    herald = by_name["herald"]
    best = max((by_name[name] for name in SDKS), key=lambda each: each.per_second)
    return (
        f"Herald: {herald.per_second / by_name['chalice'].per_second:.0f} times Chalice's loop, "
        f"{herald.per_second / best.per_second:.1f} times the best SDK ({best.name}), "
        f"{herald.per_second / by_name[CEILING].per_second:.0%} of wrk's rate, "
        f"which {limit(by_name[CEILING])} limits; "
        f"1/{by_name['boto3'].cpu_us / herald.cpu_us:.0f} of boto3's CPU"
    )


def limit(ceiling: Figures) -> str:
    """Return what limits wrk: the latency, if most of its sockets are waiting for an answer."""
    waiting = ceiling.per_second * ceiling.latency_ms / 1000 / CEILING_CONNECTIONS
    return "the latency" if waiting > 0.75 else "the processor"


def machine() -> dict[str, object]:
    """Return the system, the Python and the day of the measurement."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "measured": time.strftime("%Y-%m-%d"),
    }


@bounded(minutes=90)
def main(stub: Stub) -> None:
    """Measure every configuration, print each as a table, and write all figures."""
    configurations = [TARGET] + [
        configuration
        for latency in LATENCIES_MS
        for payload in PAYLOADS
        for recipients in RECIPIENTS
        if (configuration := (latency, payload, recipients)) != TARGET
    ]
    all_figures: list[Figures] = []
    for configuration in configurations:
        figures = measure(stub, *configuration)
        print(table(figures), flush=True)
        if configuration[1:] == TARGET[1:]:
            print(verdict(figures), flush=True)
        all_figures += figures
    measured_on = machine()
    entries = [{**asdict(each), "machine": measured_on} for each in all_figures]
    write_result(RESULTS, "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")
