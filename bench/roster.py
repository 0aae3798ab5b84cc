"""Reading everyone of a small tenant, in tables with few and with many connections of others.

    .venv/bin/python -m bench.roster

Two emulators have the same tenant of ten connections; one also has 50,000 of other tenants. The ten
are read from both in turns. The units are counted as AWS's documents count them, and the seconds
are the emulator's.
"""

import asyncio
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.bound import bounded
from bench.quick_mode import full_or_quick, write_result
from chalicelib.auth.principal import Principal
from chalicelib.clock import now_ms
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.store.audience import Audiences
from chalicelib.store.dynamodb import Store
from chalicelib.store.items import Connection
from chalicelib.store.schema import ROSTER_SHARDS
from gateway.aws.emulator import client, emulated_aws
from tests.support.tables import TABLES
from tests.support.units import Meter

TENANT, TEN = "small", 10
OTHERS = full_or_quick(50_000, 500)
TENANTS = 50  # of the others
ROUNDS = full_or_quick(31, 3)
MAX_BATCH_WRITE = 25
RESULT = Path(__file__).parent / "results" / "roster.json"


@bounded(minutes=20)
def main() -> None:
    """Measure both, and print what each read costs."""
    asyncio.run(_main())


async def _main() -> None:
    async with AsyncExitStack() as stack:
        emulators = [await stack.enter_async_context(emulated_aws({})) for _ in range(2)]
        few, many = [client("dynamodb", variables) for variables in emulators]
        await asyncio.to_thread(_measure, few, many)


def _measure(few: Any, many: Any) -> None:
    for dynamodb in (few, many):
        _fill(dynamodb, TENANT, TEN)
    for number in range(TENANTS):
        _fill(many, f"other-{number}", OTHERS // TENANTS)
    units = [_units(few), _units(many)]
    seconds: tuple[list[float], list[float]] = ([], [])
    with ThreadPoolExecutor(ROSTER_SHARDS) as readers:
        audiences = [Audiences(Store(dynamodb, TABLES), readers) for dynamodb in (few, many)]
        for _ in range(ROUNDS):
            for audience, spent in zip(audiences, seconds, strict=True):
                began = time.perf_counter()
                _read(audience)
                spent.append(time.perf_counter() - began)
    print(f"\nAll {TEN} connections of a tenant")
    print(f"{'connections of others':>22} {'read units':>11} {'ms':>7}")
    rows = []
    for others, read, spent in zip((0, OTHERS), units, seconds, strict=True):
        median = statistics.median(spent)
        print(f"{others:>22,} {read:>11g} {median * 1000:>7.1f}", flush=True)
        rows.append({"others": others, "read_units": read, "seconds": round(median, 5)})
    write_result(RESULT, json.dumps(rows, indent=1) + "\n")


def _fill(dynamodb: Any, tenant: str, connections: int) -> None:
    """Store roster entries, which is all that a message to everyone reads."""
    principal, now = Principal("user", expires_at=10**11, tenant=tenant), now_ms()
    items = [
        Connection(
            f"{tenant}-{number:06}=",
            principal,
            "https://abcdefghij.execute-api.us-east-1.amazonaws.com/api",
            connected_at=now,
            timestamp=now,
        ).roster_entry()
        for number in range(connections)
    ]
    for start in range(0, connections, MAX_BATCH_WRITE):
        requests = [{"PutRequest": {"Item": one}} for one in items[start : start + MAX_BATCH_WRITE]]
        dynamodb.batch_write_item(RequestItems={TABLES.groups: requests})


def _units(dynamodb: Any) -> float:
    meter: Any = Meter(dynamodb)
    _read(Audiences(Store(meter, TABLES)))
    reads: dict[str, float] = meter.reads
    return sum(reads.values())


def _read(audiences: Audiences) -> None:
    """Read everyone. Raises SystemExit unless these are the tenant's connections."""
    found = [
        one for page in audiences.pages([Audience(AudienceKind.ALL)], TENANT) for one in page[0]
    ]
    if len(found) != TEN:
        raise SystemExit(f"Not everybody was found: {len(found)} of {TEN}")


if __name__ == "__main__":
    main()
