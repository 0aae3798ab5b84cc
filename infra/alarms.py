"""The CloudWatch alarms of a stage; `docs/operations.md` says what to do about each."""

from collections.abc import Mapping
from typing import Any

from infra.configuration import StageConfiguration
from infra.stage import FUNCTIONS, Stage

NAMESPACE = "Herald"
PERIOD = 60
SWEEP_PERIOD = 600  # the schedule of the sweep
SUCCESS_OUTCOMES = ("delivered", "stale", "rejected")
SUCCESS = "100 * FILL(delivered, 0) / (FILL(delivered, 0) + FILL(stale, 0) + FILL(rejected, 0))"
"""Delivered / attempted; `gone` is left out, since those clients had already left."""


def alarms(configuration: StageConfiguration) -> dict[str, Any]:
    """Return the resources of the alarms; each one's description says what is wrong.

    None of them counts what a client did wrong.
    """
    stage = configuration.stage
    queue, dead_letters = stage.named("FanoutQueue"), stage.named("FanoutDeadLetterQueue")
    return {
        "DeliverySuccessAlarm": _alarm(
            stage,
            "delivery-success",
            "For five minutes, less than 99 % of deliveries have arrived",
            comparison="LessThanThreshold",
            threshold=99,
            periods=5,
            Metrics=_success_query(stage),
        ),
        "AuthorizerErrorsAlarm": _alarm(
            stage,
            "authorizer-errors",
            "Authorizers fail, so clients can't connect or call the REST API",
            comparison="GreaterThanThreshold",
            threshold=0,
            periods=2,
            # Not Lambda's `Errors`, which count the exception that refuses a token.
            **_metric(NAMESPACE, "AuthorizerErrors", {"Stage": stage.name}, "Sum"),
        ),
        "SweepErrorsAlarm": _alarm(
            stage,
            "sweep-errors",
            "The sweep fails, which no client calls: perhaps no function can start",
            comparison="GreaterThanThreshold",
            threshold=1,  # Lambda tries a failed one again after a minute, and after two
            **_metric(
                "AWS/Lambda",
                "Errors",
                {"FunctionName": {"Ref": "Sweep"}},
                "Sum",
                period=SWEEP_PERIOD,
            ),
        ),
        "ThrottlesAlarm": _alarm(
            stage,
            "throttles",
            "Lambda throttles functions, because the account's concurrency is used up",
            comparison="GreaterThanThreshold",
            threshold=0,
            periods=2,
            Metrics=_sum_query("Throttles", list(FUNCTIONS.values())),
        ),
        "DeadLettersAlarm": _alarm(
            stage,
            "dead-letters",
            "Jobs of broadcasts have failed for good",
            comparison="GreaterThanThreshold",
            threshold=0,
            **_queue_metric("ApproximateNumberOfMessagesVisible", dead_letters),
        ),
        "QueueAgeAlarm": _alarm(
            stage,
            "queue-age",
            "For five minutes, the oldest job of a broadcast has been late by over a minute",
            comparison="GreaterThanThreshold",
            threshold=60 + configuration.batch_seconds,
            periods=5,
            **_queue_metric("ApproximateAgeOfOldestMessage", queue),
        ),
    }


def _alarm(
    stage: Stage,
    name: str,
    description: str,
    *,
    comparison: str,
    threshold: float,
    periods: int = 1,
    **metric: Any,
) -> dict[str, Any]:
    actions = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopic"}], {"Ref": "AWS::NoValue"}]}
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmName": f"{stage.prefix}{name}",
            "AlarmDescription": f"{description}. See docs/operations.md#{name}",
            "ComparisonOperator": comparison,
            "Threshold": threshold,
            "EvaluationPeriods": periods,
            "TreatMissingData": "notBreaching",
            "AlarmActions": actions,
            "OKActions": actions,
            **metric,
        },
    }


def _queue_metric(name: str, queue: str) -> dict[str, Any]:
    return _metric("AWS/SQS", name, {"QueueName": queue}, "Maximum")


def _metric(
    namespace: str,
    name: str,
    dimensions: Mapping[str, Any],
    statistic: str,
    *,
    period: int = PERIOD,
) -> dict[str, Any]:
    return {
        "Namespace": namespace,
        "MetricName": name,
        "Dimensions": _listed(dimensions),
        "Statistic": statistic,
        "Period": period,
    }


def _listed(dimensions: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"Name": dimension, "Value": value} for dimension, value in dimensions.items()]


def _sum_query(name: str, functions: list[str]) -> list[dict[str, Any]]:
    """Return the sum of a metric over some functions."""
    ids = [f"m{index}" for index in range(len(functions))]
    return [
        {"Id": "total", "Expression": f"SUM([{', '.join(ids)}])", "ReturnData": True},
        *(
            _query(query_id, "AWS/Lambda", name, {"FunctionName": {"Ref": logical_id}})
            for query_id, logical_id in zip(ids, functions, strict=True)
        ),
    ]


def _success_query(stage: Stage) -> list[dict[str, Any]]:
    return [
        {"Id": "share", "Expression": SUCCESS, "ReturnData": True},
        *(
            _query(outcome, NAMESPACE, "Deliveries", {"Stage": stage.name, "Outcome": outcome})
            for outcome in SUCCESS_OUTCOMES
        ),
    ]


def _query(
    query_id: str, namespace: str, name: str, dimensions: Mapping[str, Any]
) -> dict[str, Any]:
    metric = {"Namespace": namespace, "MetricName": name, "Dimensions": _listed(dimensions)}
    return {
        "Id": query_id,
        "MetricStat": {
            "Metric": metric,
            "Period": PERIOD,
            "Stat": "Sum",
        },
        "ReturnData": False,
    }
