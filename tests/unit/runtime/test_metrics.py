"""Metrics: collecting them, and printing them for CloudWatch."""

import json
import time
from typing import Any

import pytest

from chalicelib.runtime.metrics import MAX_SAMPLES, EvenSample, Metrics, Unit


@pytest.fixture
def metrics(capsys: pytest.CaptureFixture[str]) -> Metrics:
    """Metrics of an environment that has had its first invocation."""
    metrics = Metrics("dev")
    metrics.flush()
    capsys.readouterr()
    return metrics


def printed(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_has_the_embedded_metric_format(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    """https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html"""
    metrics.count("Opened")
    metrics.count("Opened", 2)
    metrics.value("Latency", 12.5)
    metrics.value("Latency", 7.5)
    metrics.flush()
    [entry] = printed(capsys)
    assert (entry["Stage"], entry["Opened"], entry["Latency"]) == ("dev", [3], [12.5, 7.5])
    assert entry["MemoryUsed"][0] > 10
    [directive] = entry["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == ("Herald", [["Stage"]])
    assert directive["Metrics"] == [
        {"Name": "Opened", "Unit": "Count"},
        {"Name": "Latency", "Unit": "Milliseconds"},
        {"Name": "MemoryUsed", "Unit": "Megabytes"},
    ]
    assert abs(entry["_aws"]["Timestamp"] - time.time() * 1000) < 60_000


def test_a_count_with_a_dimension_is_counted_with_and_without_it(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics.count("Rejected", Reason="forbidden")
    metrics.count("Rejected", Reason="unauthorized")
    metrics.flush()
    _, *lines = printed(capsys)
    assert {line["Reason"]: line["Rejected"] for line in lines} == {
        "forbidden": [1],
        "unauthorized": [1],
    }
    for line in lines:
        [directive] = line["_aws"]["CloudWatchMetrics"]
        assert directive["Dimensions"] == [["Stage"], ["Stage", "Reason"]]


def test_an_invocation_that_measured_nothing_prints_nothing(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics.count("Retries", 0)
    metrics.flush()
    metrics.flush()
    assert printed(capsys) == []


def test_nothing_is_printed_to_a_terminal(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    metrics.count("Opened")
    metrics.flush()
    assert printed(capsys) == []


def test_a_value_of_zero_is_printed(metrics: Metrics, capsys: pytest.CaptureFixture[str]) -> None:
    metrics.value("ActiveConnections", 0, Unit.COUNT)
    metrics.flush()
    [entry] = printed(capsys)
    assert entry["ActiveConnections"] == [0]


def test_only_the_first_invocation_is_a_cold_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = Metrics("dev")
    metrics.flush()
    metrics.flush()
    [entry] = printed(capsys)
    assert entry["ColdStart"] == [1]


def test_a_sample_of_a_million_values_is_evenly_spaced() -> None:
    sample = EvenSample()
    for value in range(1_000_000):
        sample.add(value)
    assert MAX_SAMPLES / 2 <= len(sample.values) <= MAX_SAMPLES
    gaps = [after - before for before, after in zip(sample.values, sample.values[1:], strict=False)]
    assert len(set(gaps)) == 1
    assert sample.values[-1] > 900_000


def test_a_metric_with_many_values_is_one_line(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in range(10_000):
        metrics.value("Latency", value)
    metrics.flush()
    [entry] = printed(capsys)
    assert MAX_SAMPLES / 2 <= len(entry["Latency"]) <= MAX_SAMPLES
