"""Metrics for CloudWatch: collected during an invocation, and printed at its end.

They are printed in the embedded metric format, by AWS Lambda Powertools. An invocation that
measured nothing prints nothing; otherwise a million idle clients would fill the logs.
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import json
import resource
import sys
import threading
from collections import defaultdict
from enum import StrEnum
from typing import Any

from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import (
    AmazonCloudWatchEMFProvider,
)

NAMESPACE = "Herald"
MAX_SAMPLES = 64  # values of one metric in one line; the format allows 100
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of `ru_maxrss`


class Unit(StrEnum):
    """The units of metrics, as CloudWatch names them."""

    COUNT = "Count"
    MILLISECONDS = "Milliseconds"
    MEGABYTES = "Megabytes"


class EvenSample:
    """Keeps at most MAX_SAMPLES of the values that are added, evenly spaced among them."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._spacing = 1
        self._added = 0

    def add(self, value: float) -> None:
        if self._added % self._spacing == 0:
            if len(self.values) == MAX_SAMPLES:
                del self.values[1::2]
                self._spacing *= 2
            if self._added % self._spacing == 0:
                self.values.append(value)
        self._added += 1


Dimensions = tuple[tuple[str, str], ...]


class Metrics:
    """Collects the metrics of one execution environment. Thread-safe."""

    def __init__(self, stage: str) -> None:
        """Give every metric the dimension `Stage`, with the value `stage`."""
        self._stage = stage
        self._cold = True
        self._lock = threading.Lock()
        self._counts: defaultdict[tuple[str, Dimensions], float] = defaultdict(float)
        self._values: defaultdict[tuple[str, Unit], EvenSample] = defaultdict(EvenSample)

    def count(self, name: str, value: float = 1, **dimensions: str) -> None:
        """Add to a counter, and to its share with these dimensions, such as `Reason="gone"`."""
        if value:
            with self._lock:
                self._counts[name, tuple(sorted(dimensions.items()))] += value

    def value(self, name: str, value: float, unit: Unit = Unit.MILLISECONDS) -> None:
        """Add a value to a distribution, from which CloudWatch computes percentiles."""
        with self._lock:
            self._values[name, unit].add(value)

    def flush(self) -> None:
        """Print what was collected since the last flush.

        Prints nothing if that is nothing, or if standard output is a terminal.
        """
        if self._cold:
            self.count("ColdStart")
            self._cold = False
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
            values, self._values = self._values, defaultdict(EvenSample)
        if sys.stdout.isatty() or not (counts or values):
            return
        by_dimensions: dict[Dimensions, list[tuple[str, Unit, list[float]]]] = {(): []}
        for (name, dimensions), count in counts.items():
            by_dimensions.setdefault(dimensions, []).append((name, Unit.COUNT, [count]))
        for (name, unit), sample in values.items():
            by_dimensions[()].append((name, unit, sample.values))
        by_dimensions[()].append(("MemoryUsed", Unit.MEGABYTES, [_peak_megabytes()]))
        for dimensions, metrics in by_dimensions.items():
            self._print(dict(dimensions), metrics)

    def _print(
        self, dimensions: dict[str, str], metrics: list[tuple[str, Unit, list[float]]]
    ) -> None:
        emf = AmazonCloudWatchEMFProvider(namespace=NAMESPACE)
        emf.add_dimension("Stage", self._stage)
        if dimensions:
            emf.add_dimensions(Stage=self._stage, **dimensions)
        for name, unit, values in metrics:
            for value in values:
                emf.add_metric(name, unit, value)
        entry: Any = emf.serialize_metric_set()
        sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()


def _peak_megabytes() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES / 2**20
