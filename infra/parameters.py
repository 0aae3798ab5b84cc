"""The parameters of a stage's templates: limits, and what the account has already."""

from typing import Any, NamedTuple

from infra.mock_routes import PING_KEY

NO_VALUE = {"Ref": "AWS::NoValue"}


class Throttle(NamedTuple):
    """Limits of requests: API Gateway counts each method of a REST API, and each route of a
    WebSocket API, by itself.

    https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-request-throttling.html
    https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-protect.html
    """

    name: str
    """The beginning of the names of the two parameters."""
    rate: int
    burst: int
    limits: str

    @property
    def rate_parameter(self) -> str:
        return f"{self.name}Rate"

    @property
    def burst_parameter(self) -> str:
        return f"{self.name}Burst"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters for this throttle."""
        return {
            self.rate_parameter: {
                "Type": "Number",
                "Default": self.rate,
                "Description": f"{self.limits}, per second.",
            },
            self.burst_parameter: {
                "Type": "Number",
                "Default": self.burst,
                "Description": f"{self.limits}, at once.",
            },
        }


OTHERS = Throttle("Throttling", 5000, 2500, "Requests, or frames, on each route without its own")
READS = Throttle("ReadThrottling", 1000, 500, "Requests on each REST route that sends nothing")
HEALTH = Throttle("HealthThrottling", 10, 20, "Requests of GET /health, which needs no token")
HANDSHAKES = Throttle("ConnectThrottling", 500, 500, "Handshakes of WebSockets")
PINGS = Throttle("PingThrottling", 5000, 2500, "Pings, which API Gateway answers and nobody counts")

REST_THROTTLES = {
    ("/health", "GET"): HEALTH,
    ("/keys", "GET"): READS,
    ("/messages/{message_id}", "GET"): READS,
    ("/users/{user_id}", "GET"): READS,
    ("/users/{user_id}/connections", "DELETE"): READS,
    ("/users/{user_id}/connections", "GET"): READS,
    ("/users/{user_id}/connections/{connection_id}", "DELETE"): READS,
}
"""The REST routes with limits of their own, by path and method."""

WEBSOCKET_THROTTLES = {"$connect": HANDSHAKES, PING_KEY: PINGS}
"""The WebSocket routes with limits of their own, by route key."""

THROTTLES: dict[str, Any] = {
    name: parameter
    for throttle in (OTHERS, READS, HEALTH, HANDSHAKES, PINGS)
    for name, parameter in throttle.parameters.items()
}
WORKER_CONCURRENCY: dict[str, Any] = {
    "WorkerConcurrency": {
        "Type": "Number",
        "Default": 500,
        "MinValue": 0,
        "MaxValue": 1000,
        "Description": "Workers that deliver queued messages at once, from 2; 0 for no limit.",
    },
}
PING_ROUTE: dict[str, Any] = {
    "PingRoute": {
        "Type": "String",
        "AllowedValues": ["true", "false"],
        "Default": "true",
        "Description": "Whether API Gateway answers pings itself; if not, a function does.",
    },
}
ALARM_TOPIC: dict[str, Any] = {
    "AlarmTopic": {
        "Type": "String",
        "Default": "",
        "Description": "The ARN of an SNS topic that alarms notify; empty for no topic.",
    },
}
WEB_ACL: dict[str, Any] = {
    "WebACL": {
        "Type": "String",
        "Default": "",
        "Description": "The ARN of an AWS WAF web ACL for the REST API; empty for none.",
    },
}
KMS_KEY: dict[str, Any] = {
    "KmsKey": {
        "Type": "String",
        "Default": "",
        "Description": (
            "The ARN of your own KMS key, which encrypts tables, queues and secrets; empty for"
            " AWS's keys."
        ),
    },
}
PACKAGED_ONLY: dict[str, Any] = {
    "AccessLogs": {
        "Type": "String",
        "AllowedValues": ["true", "false"],
        "Default": "false",
        "Description": (
            "Whether API Gateway logs each request. The account must have a role for that:"
            " https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-logging.html"
        ),
    },
    "ReservedConcurrency": {
        "Type": "Number",
        "Default": 0,
        "MinValue": 0,
        "Description": (
            "Concurrent executions that are reserved for each function that clients call, and that"
            " it can't exceed; 0 for none."
        ),
    },
}
"""Parameters without a counterpart in a stage of `chalice deploy`."""

STORAGE_PARAMETERS = KMS_KEY
EDGE_PARAMETERS = {**ALARM_TOPIC, **WEB_ACL}
API_SETTINGS = {**THROTTLES, **WORKER_CONCURRENCY, **PING_ROUTE}
"""Settings of what Chalice makes: beside `chalice deploy`, only API calls set them."""
CHALICE_PARAMETERS = {**STORAGE_PARAMETERS, **EDGE_PARAMETERS, **API_SETTINGS}
PARAMETERS = {**CHALICE_PARAMETERS, **PACKAGED_ONLY}


def _is_set(parameter: str, unset: str) -> dict[str, Any]:
    return {"Fn::Not": [{"Fn::Equals": [{"Ref": parameter}, unset]}]}


STORAGE_CONDITIONS = {"HasKmsKey": _is_set("KmsKey", "")}
EDGE_CONDITIONS = {"HasAlarmTopic": _is_set("AlarmTopic", ""), "HasWebACL": _is_set("WebACL", "")}
CONDITIONS = {
    **STORAGE_CONDITIONS,
    **EDGE_CONDITIONS,
    "HasAccessLogs": {"Fn::Equals": [{"Ref": "AccessLogs"}, "true"]},
    "HasReservedConcurrency": _is_set("ReservedConcurrency", "0"),
    "HasWorkerConcurrency": _is_set("WorkerConcurrency", "0"),
    "HasPingRoute": {"Fn::Equals": [{"Ref": "PingRoute"}, "true"]},
}


def if_set(condition: str, value: Any, otherwise: Any = NO_VALUE) -> dict[str, Any]:
    """Return `value` where a condition holds, and else `otherwise`, by default no property."""
    return {"Fn::If": [condition, value, otherwise]}


def limits(throttle: Throttle, *, rate: str, burst: str) -> dict[str, Any]:
    """Return a throttle's two parameters under the names that a kind of API gives them."""
    return {rate: {"Ref": throttle.rate_parameter}, burst: {"Ref": throttle.burst_parameter}}
