"""One invocation in an execution environment."""

import types
from typing import Any

import pytest

from gateway.functions.runtime import UNAUTHORIZED, LambdaContext, handle


def _invoke(function: Any) -> dict[str, Any]:
    invocation = {"function": "work", "event": {"a": 1}, "requestId": "r", "seconds": 10}
    return handle(types.SimpleNamespace(work=function), invocation)


def test_a_function_gets_its_event_and_context() -> None:
    def work(event: Any, context: LambdaContext) -> Any:
        assert 9_000 < context.get_remaining_time_in_millis() <= 10_000
        return {**event, "id": context.aws_request_id, "arn": context.invoked_function_arn}

    arn = "arn:aws:lambda:us-east-1:000000000000:function:work"
    assert _invoke(work) == {"result": {"a": 1, "id": "r", "arn": arn}}


def test_a_result_that_is_not_json_is_the_functions_error() -> None:
    error = _invoke(lambda event, context: {1, 2})["error"]
    assert error["errorType"] == "TypeError"


@pytest.mark.parametrize(("text", "printed"), [(UNAUTHORIZED, False), ("other", True)])
def test_a_traceback_is_printed_unless_an_authorizer_says_401(
    capsys: pytest.CaptureFixture[str], text: str, printed: bool
) -> None:
    def work(event: Any, context: Any) -> None:
        raise ValueError(text)

    assert _invoke(work)["error"]["errorMessage"] == text
    assert ("Traceback" in capsys.readouterr().err) == printed
