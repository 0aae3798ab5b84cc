"""What CloudWatch counts and times: collected during an invocation, and printed at its end.

In the embedded metric format, by AWS Lambda Powertools. Nothing is printed for an invocation in
which nothing happened, such as a ping: a million idle clients would fill the logs.
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
SAMPLE = 64  # values of one metric in one line, of which the format allows 100
BYTES_A_UNIT = 1 if sys.platform == "darwin" else 1024  # of `ru_maxrss`


class Unit(StrEnum):
    """CloudWatch's names of what values are in."""

    COUNT = "Count"
    MILLISECONDS = "Milliseconds"
    MEGABYTES = "Megabytes"


class Sample:
    """At most SAMPLE of all values that are added, spread evenly over them."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._every = 1
        self._seen = 0

    def add(self, value: float) -> None:
        if self._seen % self._every == 0:
            if len(self.values) == SAMPLE:
                del self.values[1::2]
                self._every *= 2
            if self._seen % self._every == 0:
                self.values.append(value)
        self._seen += 1


Dimensions = tuple[tuple[str, str], ...]


class Metrics:
    """The metrics of one execution environment. Any thread may add to them."""

    def __init__(self, stage: str) -> None:
        """`stage` is every metric's dimension `Stage`."""
        self._stage = stage
        self._cold = True
        self._lock = threading.Lock()
        self._counts: defaultdict[tuple[str, Dimensions], float] = defaultdict(float)
        self._values: defaultdict[tuple[str, Unit], Sample] = defaultdict(Sample)

    def count(self, name: str, value: float = 1, **dimensions: str) -> None:
        """Add to a sum; by `dimensions` (such as Reason="gone") as well as in all."""
        if value:
            with self._lock:
                self._counts[name, tuple(sorted(dimensions.items()))] += value

    def value(self, name: str, value: float, unit: Unit = Unit.MILLISECONDS) -> None:
        """Add one value to those of which CloudWatch tells percentiles."""
        with self._lock:
            self._values[name, unit].add(value)

    def flush(self) -> None:
        """Print what has been added since the last time, if anything has."""
        if self._cold:
            self.count("ColdStart")
            self._cold = False
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
            values, self._values = self._values, defaultdict(Sample)
        if sys.stdout.isatty() or not (counts or values):
            return  # a person at a terminal is spared them: CloudWatch is none
        by_dimensions: dict[Dimensions, list[tuple[str, Unit, list[float]]]] = {(): []}
        for (name, dimensions), value in counts.items():
            by_dimensions.setdefault(dimensions, []).append((name, Unit.COUNT, [value]))
        for (name, unit), sample in values.items():
            by_dimensions[()].append((name, unit, sample.values))
        by_dimensions[()].append(("MemoryUsed", Unit.MEGABYTES, [_megabytes()]))
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


def _megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_A_UNIT / 2**20
