"""How much is measured: all of it; or, with QUICK=1, just enough to see that it can be."""

import os
from pathlib import Path
from typing import TypeVar

QUICK = os.environ.get("QUICK") == "1"

T = TypeVar("T")


def extent(full: T, quick: T) -> T:
    """What a benchmark goes to."""
    return quick if QUICK else full


def keep(result: Path, text: str) -> None:
    """Write figures down. A quick run's say nothing, and leave those that there are."""
    if QUICK:
        return
    result.parent.mkdir(exist_ok=True)
    result.write_text(text)
    print(f"Written to {result.relative_to(Path(__file__).parent.parent)}", flush=True)
