"""One Lambda execution environment: a process that imports the app and handles one event at a time.

Speaks lines of JSON with `gateway.functions.environments` over an inherited socket. First it says
what the app declares, or why it can't be imported; then it answers each invocation with a result or
an error. It ends when the other side hangs up.
"""

import contextlib
import importlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from gateway.functions.iam_recorder import record_calls
from gateway.log import print_whole_lines
from gateway.machine import signals

UNAUTHORIZED = "Unauthorized"
IMPORTING = {
    __file__,
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
}
"""Whose frames lead to the app's first."""

REST_FUNCTION = "api_handler"  # the name that Chalice gives the function behind the REST API


class LambdaContext:
    """https://docs.aws.amazon.com/lambda/latest/dg/python-context.html"""

    function_version = "$LATEST"
    memory_limit_in_mb = 512
    identity = None
    client_context = None

    def __init__(self, function_name: str, request_id: str, seconds: float) -> None:
        self.function_name = function_name
        self.aws_request_id = request_id
        self.invoked_function_arn = (
            f"arn:aws:lambda:us-east-1:000000000000:function:{function_name}"
        )
        self.log_group_name = f"/aws/lambda/{function_name}"
        self.log_stream_name = "local"
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self._end - time.monotonic()) * 1000))


def describe(app: Any) -> dict[str, Any]:
    """What the Chalice app declares, as a deployment of it would set API Gateway up."""
    routes: dict[str, dict[str, str | None]] = {}
    for path, methods in app.routes.items():
        authorizers = {method: entry.authorizer for method, entry in methods.items()}
        routes[path] = {
            method: _function(authorizer.config) if authorizer else None
            for method, authorizer in authorizers.items()
        }
    return {
        "routes": routes,
        "preflights": _preflights(app),
        "websocket": {key: _function(entry) for key, entry in app.websocket_handlers.items()},
        "schedules": _schedules(app),
        "queues": _queues(app),
        "functions": [_function(entry) for entry in app.pure_lambda_functions],
        "binaryTypes": app.api.binary_types,
    }


def _preflights(app: Any) -> dict[str, dict[str, str]]:
    """What OPTIONS of a path is answered where its methods allow pages of other origins."""
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
    """The scheduled functions, each with its expression: `rate(1 minute)`."""
    expressions = {
        _function(source): source.schedule_expression
        for source in app.event_sources
        if hasattr(source, "schedule_expression")
    }
    return {
        function: expression if isinstance(expression, str) else expression.to_string()
        for function, expression in expressions.items()
    }


def _queues(app: Any) -> dict[str, dict[str, Any]]:
    """The functions that take from queues, each with how it does."""
    return {
        _function(source): {
            "queue": source.queue,
            "batchSize": source.batch_size,
            "batchSeconds": source.maximum_batching_window_in_seconds,
        }
        for source in app.event_sources
        if hasattr(source, "queue")
    }


def _function(entry: Any) -> str:
    name: str = entry.handler_string.removeprefix("app.")
    return name


def error_of(error: BaseException) -> dict[str, Any]:
    """An error as Lambda reports it to who invoked."""
    return {
        "errorType": type(error).__name__,
        "errorMessage": str(error),
        "stackTrace": traceback.format_exception(error),
    }


def handle(module: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Run one invocation: JSON in, JSON out."""
    name = request["function"]
    context = LambdaContext(name, request["requestId"], request["seconds"])
    function: Callable[[Any, Any], Any]
    function = module.app if name == REST_FUNCTION else getattr(module, name)
    try:
        result = function(request["event"], context)
        json.dumps(result)  # what is no JSON can't leave a function
    except Exception as error:
        if str(error) != UNAUTHORIZED:  # which is an authorizer's way to say 401
            traceback.print_exc()
        return {"error": error_of(error)}
    return {"result": result}


def _from_the_app_on(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without what imports the app, of which nobody wrote anything here."""
    while trace is not None and trace.tb_frame.f_code.co_filename in IMPORTING:
        trace = trace.tb_next
    return trace


def main(descriptor: int) -> None:
    """Import the app, then serve invocations until the other side hangs up."""
    function = ""
    if "GATEWAY_CALLS_FILE" in os.environ:
        record_calls(Path(os.environ["GATEWAY_CALLS_FILE"]), lambda: function)
    signals.ignore()
    print_whole_lines()
    with socket.socket(fileno=descriptor) as channel, channel.makefile("rwb") as lines:

        def say(answer: dict[str, Any]) -> None:
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()

        try:
            module = importlib.import_module("app")
            say({"result": describe(module.app)})
        except Exception as error:
            error.__traceback__ = _from_the_app_on(error.__traceback__)
            say({"error": error_of(error)})
            return
        for line in lines:
            request = json.loads(line)
            function = request["function"]
            say(handle(module, request))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the other side hung up while we said something
        main(int(sys.argv[1]))
