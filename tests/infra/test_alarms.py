"""The alarms."""

import re
from typing import Any

from gateway.configuration import PROJECT
from infra.alarms import SWEEP_PERIOD, alarms
from infra.configuration import StageConfiguration
from infra.stage import Stage

DEV = StageConfiguration(Stage("dev"))


def test_every_alarm_has_its_section_in_the_documents() -> None:
    page = (PROJECT / "docs" / "operations.md").read_text()
    for alarm in alarms(DEV).values():
        name = alarm["Properties"]["AlarmDescription"].rpartition("#")[2]
        assert f'### <a id="{name}"></a>' in page


def metrics(alarm: Any) -> set[tuple[str, str]]:
    """Return the namespaces and names of an alarm's metrics."""
    own = alarm["Properties"]
    listed = [one["MetricStat"]["Metric"] for one in own.get("Metrics", []) if "MetricStat" in one]
    return {(one["Namespace"], one["MetricName"]) for one in listed or [own]}


def test_no_alarm_counts_the_errors_of_functions_that_clients_call() -> None:
    """Lambda counts every exception, also the one that refuses a token:
    https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
    """
    every: dict[str, Any] = alarms(DEV)
    errors = {name for name, alarm in every.items() if ("AWS/Lambda", "Errors") in metrics(alarm)}
    assert errors == {"SweepErrorsAlarm"}
    [dimension] = every["SweepErrorsAlarm"]["Properties"]["Dimensions"]
    assert dimension["Value"] == {"Ref": "Sweep"}  # EventBridge calls it, and no client
    assert metrics(every["AuthorizerErrorsAlarm"]) == {("Herald", "AuthorizerErrors")}


def test_the_alarm_of_the_sweep_looks_at_the_time_of_one_sweep_and_its_retries() -> None:
    """Metrics of shorter periods would have gaps, in which an alarm is not breaching."""
    [rate] = re.findall(
        r"schedule\(Rate\((\d+), unit=Rate.MINUTES", (PROJECT / "app.py").read_text()
    )
    own = alarms(DEV)["SweepErrorsAlarm"]["Properties"]
    assert own["Period"] == SWEEP_PERIOD == int(rate) * 60
    assert (own["EvaluationPeriods"], own["Threshold"]) == (1, 1)


def test_a_job_that_waits_for_a_batching_window_is_not_late() -> None:
    variables = {"HERALD_FANOUT_BATCH_SECONDS": "300"}
    slow = StageConfiguration(Stage("dev"), {"environment_variables": variables})
    thresholds = [alarms(one)["QueueAgeAlarm"]["Properties"]["Threshold"] for one in (DEV, slow)]
    assert thresholds == [60, 360]
