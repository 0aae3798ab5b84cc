"""What is collected, and how it is printed for CloudWatch."""

import json
import time
from typing import Any

import pytest

from chalicelib.runtime.metrics import SAMPLE, Metrics, Sample, Unit


@pytest.fixture
def metrics(capsys: pytest.CaptureFixture[str]) -> Metrics:
    """Of an environment that has had its first invocation."""
    metrics = Metrics("dev")
    metrics.flush()
    capsys.readouterr()
    return metrics


def printed(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_is_as_cloudwatch_reads_it(
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


def test_a_dimension_more_is_a_line_that_counts_with_it_and_without(
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


def test_an_invocation_in_which_nothing_happened_prints_nothing(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics.count("Retries", 0)
    metrics.flush()
    metrics.flush()
    assert printed(capsys) == []


def test_a_person_at_a_terminal_is_spared_them(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    metrics.count("Opened")
    metrics.flush()
    assert printed(capsys) == []


def test_none_is_a_value_where_it_is_asked_for(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics.value("ActiveConnections", 0, Unit.COUNT)
    metrics.flush()
    [entry] = printed(capsys)
    assert entry["ActiveConnections"] == [0]


def test_the_first_invocation_is_a_cold_start(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics("dev")
    metrics.flush()
    metrics.flush()
    [entry] = printed(capsys)
    assert entry["ColdStart"] == [1]


def test_of_a_million_values_some_are_kept_from_all_over() -> None:
    sample = Sample()
    for value in range(1_000_000):
        sample.add(value)
    assert SAMPLE / 2 <= len(sample.values) <= SAMPLE
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
    assert SAMPLE / 2 <= len(entry["Latency"]) <= SAMPLE
