"""Quick mode: with QUICK=1 a benchmark runs just long enough to show that it works.

A quick run's figures mean nothing, so they are not written to `bench/results`.
"""

import os
from pathlib import Path
from typing import TypeVar

QUICK = os.environ.get("QUICK") == "1"

T = TypeVar("T")


def full_or_quick(full: T, quick: T) -> T:
    """Return the size of a benchmark: `full`, or `quick` in quick mode."""
    return quick if QUICK else full


def write_result(path: Path, text: str) -> None:
    """Write the figures of a full run to a file, and print its path."""
    if QUICK:
        return
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(f"Written to {path.relative_to(Path(__file__).parent.parent)}", flush=True)
