"""Reads the declarations of a Chalice app, which a deployment turns into APIs and functions."""

from typing import Any, TypedDict

Routes = dict[str, dict[str, str | None]]
"""The authorizer's function (None: no authorizer) by path and method."""


class QueueTrigger(TypedDict):
    """A function's queue, and the size and window of its batches."""

    queue: str
    batchSize: int
    batchSeconds: int


class Declarations(TypedDict):
    """The app's declarations. They travel as JSON, so functions are given by their names."""

    routes: Routes
    preflights: dict[str, dict[str, str]]
    """The headers that answer OPTIONS, by path."""
    websocket: dict[str, str]
    """The functions by route key: `$connect`, `$default`, `$disconnect`."""
    schedules: dict[str, str]
    """The schedule expression of each scheduled function, such as `rate(1 minute)`."""
    queues: dict[str, QueueTrigger]
    """The triggers by function."""
    functions: list[str]
    """The functions without a trigger."""
    binaryTypes: list[str]
    """The content types whose bodies are base64-encoded in events."""


def declarations(app: Any) -> Declarations:
    """Return what a Chalice app declares."""
    return {
        "routes": _routes(app),
        "preflights": _preflights(app),
        "websocket": {key: _name(entry) for key, entry in app.websocket_handlers.items()},
        "schedules": _schedules(app),
        "queues": _queues(app),
        "functions": [_name(entry) for entry in app.pure_lambda_functions],
        "binaryTypes": app.api.binary_types,
    }


def _routes(app: Any) -> Routes:
    return {
        path: {
            method: _name(entry.authorizer.config) if entry.authorizer else None
            for method, entry in methods.items()
        }
        for path, methods in app.routes.items()
    }


def _preflights(app: Any) -> dict[str, dict[str, str]]:
    """Return the headers that answer OPTIONS, for paths whose methods allow other origins."""
    headers = {}
    for path, methods in app.routes.items():
        allowed = {method: entry.cors for method, entry in methods.items() if entry.cors}
        if allowed:
            headers[path] = {
                **next(iter(allowed.values())).get_access_control_headers(),
                "Access-Control-Allow-Methods": ",".join([*sorted(allowed), "OPTIONS"]),
            }
    return headers


def _schedules(app: Any) -> dict[str, str]:
    expressions = {
        _name(trigger): trigger.schedule_expression
        for trigger in app.event_sources
        if hasattr(trigger, "schedule_expression")
    }
    return {
        function: expression if isinstance(expression, str) else expression.to_string()
        for function, expression in expressions.items()
    }


def _queues(app: Any) -> dict[str, QueueTrigger]:
    return {
        _name(trigger): {
            "queue": trigger.queue,
            "batchSize": trigger.batch_size,
            "batchSeconds": trigger.maximum_batching_window_in_seconds,
        }
        for trigger in app.event_sources
        if hasattr(trigger, "queue")
    }


def _name(entry: Any) -> str:
    name: str = entry.handler_string.removeprefix("app.")
    return name
