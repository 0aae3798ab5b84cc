"""The CloudWatch alarms of a stage; `docs/operations.md` says what to do about each."""

from collections.abc import Mapping
from typing import Any

from infra.stage import FUNCTIONS, Stage

NAMESPACE = "Herald"
PERIOD = 60
SUCCESS_OUTCOMES = ("delivered", "stale", "rejected")
SUCCESS = "100 * FILL(delivered, 0) / (FILL(delivered, 0) + FILL(stale, 0) + FILL(rejected, 0))"
"""Delivered / attempted; `gone` is left out, since those clients had already left."""


def alarms(stage: Stage) -> dict[str, Any]:
    """Return the resources of the alarms; each one's description says what is wrong."""
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
            Metrics=_sum_query("Errors", ["ConnectAuthorizer", "RestAuthorizer"]),
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
            "For five minutes, the oldest job of a broadcast has been over a minute old",
            comparison="GreaterThanThreshold",
            threshold=60,
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
    return {
        "Namespace": "AWS/SQS",
        "MetricName": name,
        "Dimensions": [{"Name": "QueueName", "Value": queue}],
        "Statistic": "Maximum",
        "Period": PERIOD,
    }


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
    listed = [{"Name": dimension, "Value": value} for dimension, value in dimensions.items()]
    return {
        "Id": query_id,
        "MetricStat": {
            "Metric": {"Namespace": namespace, "MetricName": name, "Dimensions": listed},
            "Period": PERIOD,
            "Stat": "Sum",
        },
        "ReturnData": False,
    }
