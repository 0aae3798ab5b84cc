"""The CloudWatch dashboard, and the alarms; `docs/operations.md` says what each means."""

import json
from typing import Any

from infra.stage import FUNCTIONS, Stage

NAMESPACE = "Herald"
WIDTH, HEIGHT, COLUMNS = 8, 6, 3
PERIOD = 60

Metric = list[Any]
"""As a dashboard has it: namespace, name, dimensions' names and values, then options."""


def dashboard(stage: Stage) -> dict[str, Any]:
    """Everything about a stage on one page."""
    graphs = [graph for row in _rows(stage) for graph in row]
    widgets = [
        {
            "type": "metric",
            "x": WIDTH * (index % COLUMNS),
            "y": HEIGHT * (index // COLUMNS),
            "width": WIDTH,
            "height": HEIGHT,
            "properties": {
                "title": title,
                "region": "${AWS::Region}",
                "period": PERIOD,
                "view": "timeSeries",
                "metrics": metrics,
            },
        }
        for index, (title, metrics) in enumerate(graphs)
    ]
    body = json.dumps({"widgets": widgets})
    return {
        "Type": "AWS::CloudWatch::Dashboard",
        "Properties": {
            "DashboardName": f"herald-{stage.name}",
            "DashboardBody": {"Fn::Sub": body},
        },
    }


def _rows(stage: Stage) -> list[list[tuple[str, list[Metric]]]]:
    def herald(name: str, stat: str, label: str, **dimension: str) -> Metric:
        own = [text for pair in dimension.items() for text in pair]
        return [NAMESPACE, name, "Stage", stage.name, *own, {"stat": stat, "label": label}]

    def of_functions(name: str, stat: str = "Sum") -> list[Metric]:
        return [
            ["AWS/Lambda", name, "FunctionName", f"${{{logical_id}}}", {"stat": stat, "label": it}]
            for it, logical_id in FUNCTIONS.items()
        ]

    def percentiles(name: str) -> list[Metric]:
        return [herald(name, stat, stat) for stat in ("p50", "p95", "p99")]

    def of_tables(name: str) -> list[Metric]:
        tables = [it for it, one in stage.resources.items() if it.endswith("Table") and one]
        return [
            ["AWS/DynamoDB", name, "TableName", stage.named(it), {"stat": "Sum", "label": it}]
            for it in tables
        ]

    queue = ["QueueName", stage.named("FanoutQueue")]
    letters = ["QueueName", stage.named("FanoutDeadLetterQueue")]
    api = ["ApiId", "${WebsocketAPI}", "Stage", "api"]
    outcomes = ("delivered", "gone", "stale", "rejected")
    return [
        [
            ("Active connections", [herald("ActiveConnections", "Maximum", "active")]),
            (
                "Connections a minute",
                [
                    herald("ConnectionsOpened", "Sum", "opened"),
                    herald("ConnectionsClosed", "Sum", "closed"),
                    herald("ConnectionsRejected", "Sum", "rejected"),
                ],
            ),
            ("How long connections last, ms", percentiles("ConnectionDuration")),
        ],
        [
            (
                "Messages a minute",
                [
                    herald("MessagesAccepted", "Sum", "accepted"),
                    herald("MessagesRejected", "Sum", "rejected"),
                    herald("FanoutQueued", "Sum", "queued"),
                ],
            ),
            (
                "Deliveries a minute",
                [herald("Deliveries", "Sum", one, Outcome=one) for one in outcomes]
                + [herald("DeliveryRetries", "Sum", "retries")],
            ),
            ("Delivery success, %", _success(stage)),
        ],
        [
            ("From accepted to delivered, ms", percentiles("DeliveryLatency")),
            ("A broadcast's duration, ms", percentiles("FanoutDuration")),
            (
                "The queue",
                [
                    ["AWS/SQS", "ApproximateAgeOfOldestMessage", *queue, {"label": "age, s"}],
                    ["AWS/SQS", "ApproximateNumberOfMessagesVisible", *queue, {"label": "waiting"}],
                    ["AWS/SQS", "ApproximateNumberOfMessagesVisible", *letters, {"label": "dead"}],
                ],
            ),
        ],
        [
            ("Functions' errors", of_functions("Errors")),
            ("Functions' throttles", of_functions("Throttles")),
            ("Functions' durations, p99 ms", of_functions("Duration", "p99")),
        ],
        [
            (
                "Memory, MB, and cold starts",
                [
                    herald("MemoryUsed", "Maximum", "memory"),
                    herald("ColdStart", "Sum", "cold starts"),
                ],
            ),
            (
                "What costs: API Gateway",
                [
                    ["AWS/ApiGateway", name, *api, {"stat": "Sum", "label": name}]
                    for name in ("ConnectCount", "MessageCount")
                ],
            ),
            (
                "What costs: DynamoDB",
                of_tables("ConsumedWriteCapacityUnits") + of_tables("ConsumedReadCapacityUnits"),
            ),
        ],
    ]


def _success(stage: Stage) -> list[Metric]:
    """The share of delivered ones among all that were tried; who is gone, was gone before."""
    outcomes = ("delivered", "stale", "rejected")
    share = "100 * FILL(delivered, 0) / (FILL(delivered, 0) + FILL(stale, 0) + FILL(rejected, 0))"
    return [
        [{"expression": share, "label": "delivered", "id": "share"}],
        *(
            [
                NAMESPACE,
                "Deliveries",
                "Stage",
                stage.name,
                "Outcome",
                outcome,
                {"id": outcome, "stat": "Sum", "visible": False},
            ]
            for outcome in outcomes
        ),
    ]


def alarms(stage: Stage) -> dict[str, Any]:
    """What somebody should look at, each for the reason that its description gives."""
    letters, queue = stage.named("FanoutDeadLetterQueue"), stage.named("FanoutQueue")
    return {
        "DeliverySuccessAlarm": _alarm(
            stage,
            "delivery-success",
            "Less than 99 % of deliveries arrive, for five minutes",
            "LessThanThreshold",
            99,
            periods=5,
            Metrics=_success_query(stage),
        ),
        "AuthorizerErrorsAlarm": _alarm(
            stage,
            "authorizer-errors",
            "Authorizers fail: nobody can connect or call",
            "GreaterThanThreshold",
            0,
            periods=2,
            Metrics=_sum_query("Errors", ["ConnectAuthorizer", "RestAuthorizer"]),
        ),
        "ThrottlesAlarm": _alarm(
            stage,
            "throttles",
            "Lambda throttles functions: the account's concurrency is used up",
            "GreaterThanThreshold",
            0,
            periods=2,
            Metrics=_sum_query("Throttles", list(FUNCTIONS.values())),
        ),
        "DeadLettersAlarm": _alarm(
            stage,
            "dead-letters",
            "Jobs of the fan-out were given up",
            "GreaterThanThreshold",
            0,
            **_of_queue("ApproximateNumberOfMessagesVisible", letters),
        ),
        "QueueAgeAlarm": _alarm(
            stage,
            "queue-age",
            "The oldest job has waited for more than a minute, for five minutes",
            "GreaterThanThreshold",
            60,
            periods=5,
            **_of_queue("ApproximateAgeOfOldestMessage", queue),
        ),
    }


def _alarm(
    stage: Stage,
    name: str,
    description: str,
    comparison: str,
    threshold: float,
    periods: int = 1,
    **metric: Any,
) -> dict[str, Any]:
    actions = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopic"}], {"Ref": "AWS::NoValue"}]}
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmName": f"herald-{stage.name}-{name}",
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


def _of_queue(name: str, queue: str) -> dict[str, Any]:
    return {
        "Namespace": "AWS/SQS",
        "MetricName": name,
        "Dimensions": [{"Name": "QueueName", "Value": queue}],
        "Statistic": "Maximum",
        "Period": PERIOD,
    }


def _sum_query(name: str, functions: list[str]) -> list[dict[str, Any]]:
    """A metric of some functions, together."""
    ids = [f"m{index}" for index in range(len(functions))]
    return [
        {"Id": "total", "Expression": f"SUM([{', '.join(ids)}])", "ReturnData": True},
        *(
            _query(it, "AWS/Lambda", name, [{"Name": "FunctionName", "Value": {"Ref": logical_id}}])
            for it, logical_id in zip(ids, functions, strict=True)
        ),
    ]


def _success_query(stage: Stage) -> list[dict[str, Any]]:
    [expression, *outcomes] = _success(stage)
    return [
        {"Id": "share", "Expression": expression[0]["expression"], "ReturnData": True},
        *(
            _query(
                outcome[-1]["id"],
                NAMESPACE,
                "Deliveries",
                [
                    {"Name": "Stage", "Value": stage.name},
                    {"Name": "Outcome", "Value": outcome[-1]["id"]},
                ],
            )
            for outcome in outcomes
        ),
    ]


def _query(
    query_id: str, namespace: str, name: str, dimensions: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "Id": query_id,
        "MetricStat": {
            "Metric": {"Namespace": namespace, "MetricName": name, "Dimensions": dimensions},
            "Period": PERIOD,
            "Stat": "Sum",
        },
        "ReturnData": False,
    }
