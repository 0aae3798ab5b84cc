"""One Lambda execution environment: a process that imports the app and handles one event at a time.

It exchanges lines of JSON with `gateway.functions.execution_environment` over an inherited socket.
First it sends what the app declares, or why the app can't be imported. Then it answers each
invocation with a result or an error. It ends when the gateway closes the socket.
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

from gateway.aws.variables import ACCOUNT, REGION
from gateway.functions.declarations import declarations
from gateway.machine import signals
from gateway.machine.standard_streams import print_whole_lines

UNAUTHORIZED = "Unauthorized"
"""The text of the exception by which an authorizer answers 401."""
REST_FUNCTION = "api_handler"
"""Chalice's name for the function behind the REST API."""
IMPORT_FRAMES = {
    __file__,
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
}
"""The files whose frames come before the app's in the traceback of a failed import."""


class LambdaContext:
    """https://docs.aws.amazon.com/lambda/latest/dg/python-context.html"""

    function_version = "$LATEST"
    memory_limit_in_mb = 512
    identity = None
    client_context = None

    def __init__(self, function_name: str, request_id: str, seconds: float) -> None:
        self.function_name = function_name
        self.aws_request_id = request_id
        self.invoked_function_arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function_name}"
        self.log_group_name = f"/aws/lambda/{function_name}"
        self.log_stream_name = "local"
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        """Return how long the function may still run."""
        return max(0, int((self._end - time.monotonic()) * 1000))


def error_response(error: BaseException) -> dict[str, Any]:
    """Return an error as Lambda reports it to the invoker."""
    return {
        "error": {
            "errorType": type(error).__name__,
            "errorMessage": str(error),
            "stackTrace": traceback.format_exception(error),
        }
    }


def handle(module: Any, invocation: dict[str, Any]) -> dict[str, Any]:
    """Run one invocation of a function of the app's module: JSON in, JSON out."""
    name = invocation["function"]
    context = LambdaContext(name, invocation["requestId"], invocation["seconds"])
    function: Callable[[Any, Any], Any]
    function = module.app if name == REST_FUNCTION else getattr(module, name)
    try:
        result = function(invocation["event"], context)
        json.dumps(result)  # a result that isn't JSON is the function's error
    except Exception as error:
        if str(error) != UNAUTHORIZED:
            traceback.print_exc()
        return error_response(error)
    return {"result": result}


def _without_import_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the app's first frame on."""
    while trace is not None and trace.tb_frame.f_code.co_filename in IMPORT_FRAMES:
        trace = trace.tb_next
    return trace


def main(descriptor: int) -> None:
    """Import the app, then handle invocations until the gateway closes the socket."""
    with contextlib.suppress(BrokenPipeError):  # the gateway closed the socket meanwhile
        _serve(descriptor)


def _serve(descriptor: int) -> None:
    function = ""
    if "GATEWAY_CALLS_FILE" in os.environ:
        from gateway.functions.iam_recorder import record_calls

        record_calls(Path(os.environ["GATEWAY_CALLS_FILE"]), lambda: function)
    signals.ignore_interrupts()
    print_whole_lines()
    with socket.socket(fileno=descriptor) as channel, channel.makefile("rwb") as lines:

        def respond(response: dict[str, Any]) -> None:
            lines.write(json.dumps(response).encode() + b"\n")
            lines.flush()

        try:
            module = importlib.import_module("app")
            respond({"result": declarations(module.app)})
        except Exception as error:
            error.__traceback__ = _without_import_frames(error.__traceback__)
            respond(error_response(error))
            return
        for line in lines:
            invocation = json.loads(line)
            function = invocation["function"]
            respond(handle(module, invocation))


if __name__ == "__main__":
    main(int(sys.argv[1]))
