"""The CloudWatch dashboard of a stage."""

import json
from typing import Any

from infra.alarms import NAMESPACE, PERIOD, SUCCESS, SUCCESS_OUTCOMES, SWEEP_PERIOD
from infra.stage import API_STAGE, FUNCTIONS, TABLES, Stage

WIDTH, HEIGHT, COLUMNS = 8, 6, 3

Metric = list[Any]
"""A metric in a dashboard's form: namespace, name, names and values of dimensions, options."""

Graph = tuple[str, list[Metric]]
"""A title and the metrics under it."""


def dashboard(stage: Stage) -> dict[str, Any]:
    """Return the resource of the dashboard, which shows every metric of a stage on one page."""
    graphs = _graphs(stage)
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
            "DashboardName": stage.stack_name,
            "DashboardBody": {"Fn::Sub": body},
        },
    }


def _graphs(stage: Stage) -> list[Graph]:
    """Return the graphs, three to a row of the dashboard."""
    return [
        *_connections(stage),
        *_messages(stage),
        *_latencies(stage),
        *_functions(stage),
        *_costs(stage),
    ]


def _connections(stage: Stage) -> list[Graph]:
    active = _metric(
        (NAMESPACE, "ActiveConnections", "Stage", stage.name),
        stat="Maximum",
        label="active",
        period=SWEEP_PERIOD,
    )
    return [
        ("Active connections", [active]),
        (
            "Connections per minute",
            [
                _herald(stage, "ConnectionsOpened", "Sum", "opened"),
                _herald(stage, "ConnectionsClosed", "Sum", "closed"),
                _herald(stage, "ConnectionsRejected", "Sum", "rejected"),
            ],
        ),
        ("Duration of connections, ms", _percentiles(stage, "ConnectionDuration")),
    ]


def _messages(stage: Stage) -> list[Graph]:
    outcomes = ("delivered", "gone", "stale", "rejected")
    return [
        (
            "Messages per minute",
            [
                _herald(stage, "MessagesAccepted", "Sum", "accepted"),
                _herald(stage, "MessagesRejected", "Sum", "rejected"),
                _herald(stage, "FanoutQueued", "Sum", "queued"),
            ],
        ),
        (
            "Deliveries per minute",
            [
                *(_herald(stage, "Deliveries", "Sum", it, Outcome=it) for it in outcomes),
                _herald(stage, "DeliveryRetries", "Sum", "retries"),
            ],
        ),
        ("Delivery success, %", _success(stage)),
    ]


def _latencies(stage: Stage) -> list[Graph]:
    queue = ["QueueName", stage.named("FanoutQueue")]
    dead_letters = ["QueueName", stage.named("FanoutDeadLetterQueue")]
    visible = "ApproximateNumberOfMessagesVisible"
    return [
        ("From accepted to delivered, ms", _percentiles(stage, "DeliveryLatency")),
        ("Duration of broadcasts, ms", _percentiles(stage, "FanoutDuration")),
        (
            "Queue of broadcasts",
            [
                ["AWS/SQS", "ApproximateAgeOfOldestMessage", *queue, {"label": "age, s"}],
                ["AWS/SQS", visible, *queue, {"label": "waiting"}],
                ["AWS/SQS", visible, *dead_letters, {"label": "dead letters"}],
            ],
        ),
    ]


def _functions(stage: Stage) -> list[Graph]:
    def of_each(name: str, statistic: str) -> list[Metric]:
        return [
            _metric(
                ("AWS/Lambda", name, "FunctionName", f"${{{logical_id}}}"),
                stat=statistic,
                label=function,
            )
            for function, logical_id in FUNCTIONS.items()
        ]

    return [
        (
            "Errors of functions",
            [
                *of_each("Errors", "Sum"),
                _herald(stage, "AuthorizerErrors", "Sum", "authorizers, without refused tokens"),
            ],
        ),
        ("Throttles of functions", of_each("Throttles", "Sum")),
        ("Durations of functions, p99 ms", of_each("Duration", "p99")),
    ]


def _costs(stage: Stage) -> list[Graph]:
    def of_each_table(name: str) -> list[Metric]:
        return [
            _metric(
                ("AWS/DynamoDB", name, "TableName", stage.named(table)), stat="Sum", label=table
            )
            for table in TABLES.values()
        ]

    api = ["ApiId", "${WebsocketAPI}", "Stage", API_STAGE]
    return [
        (
            "Memory, MB, and cold starts",
            [
                _herald(stage, "MemoryUsed", "Maximum", "memory"),
                _herald(stage, "ColdStart", "Sum", "cold starts"),
            ],
        ),
        (
            "Cost drivers of API Gateway",
            [
                ["AWS/ApiGateway", name, *api, {"stat": "Sum", "label": name}]
                for name in ("ConnectCount", "MessageCount")
            ],
        ),
        (
            "Cost drivers of DynamoDB",
            of_each_table("ConsumedWriteCapacityUnits")
            + of_each_table("ConsumedReadCapacityUnits"),
        ),
    ]


def _metric(name: tuple[str, ...], **options: Any) -> Metric:
    return [*name, options]


def _herald(stage: Stage, name: str, statistic: str, label: str, **dimensions: str) -> Metric:
    """Return one of Herald's own metrics."""
    more = [text for pair in dimensions.items() for text in pair]
    return _metric((NAMESPACE, name, "Stage", stage.name, *more), stat=statistic, label=label)


def _percentiles(stage: Stage, name: str) -> list[Metric]:
    return [_herald(stage, name, statistic, statistic) for statistic in ("p50", "p95", "p99")]


def _success(stage: Stage) -> list[Metric]:
    """Return the share of deliveries that arrived, and the hidden metrics that it is made of."""
    deliveries = (NAMESPACE, "Deliveries", "Stage", stage.name, "Outcome")
    return [
        [{"expression": SUCCESS, "label": "delivered", "id": "share"}],
        *(
            _metric((*deliveries, outcome), id=outcome, stat="Sum", visible=False)
            for outcome in SUCCESS_OUTCOMES
        ),
    ]
