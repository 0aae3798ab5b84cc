"""Herald's own limits fit AWS's, and the deployment and the local gateway have the same ones."""

import json
from typing import Any

import pytest

from chalicelib import aws_limits
from chalicelib.runtime.metrics import MAX_SAMPLES
from chalicelib.settings import Settings
from gateway.api import authorization, sockets, uvicorn_server
from gateway.configuration import PROJECT, Configuration


def test_an_answer_is_ready_before_api_gateway_and_lambda_give_up() -> None:
    assert aws_limits.WORK_SECONDS < aws_limits.INTEGRATION_SECONDS < aws_limits.FUNCTION_SECONDS


def test_limits_that_must_outlive_a_handler_exceed_its_time_out() -> None:
    assert aws_limits.HANDSHAKE_SECONDS >= aws_limits.INTEGRATION_SECONDS
    assert aws_limits.HANDLER_MS >= aws_limits.FUNCTION_SECONDS * 1000
    assert aws_limits.CLAIM_MS > aws_limits.FUNCTION_SECONDS * 1000


@pytest.mark.parametrize("window", [0, 1, 90, 300])
def test_a_job_is_hidden_for_six_time_outs_and_the_batching_window(window: int) -> None:
    """https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html"""
    assert aws_limits.visibility_seconds(window) == 6 * aws_limits.FUNCTION_SECONDS + window
    assert aws_limits.visibility_seconds(window, function_seconds=60) == 360 + window


def test_stored_and_forwarded_values_leave_room_within_awss_limits() -> None:
    assert aws_limits.ITEM_CONTENT_BYTES < 0.75 * aws_limits.ITEM_BYTES
    assert aws_limits.TOKEN_BYTES < aws_limits.HEADER_BYTES
    assert aws_limits.CONTEXT_BYTES < aws_limits.AUTHORIZER_RESULT_BYTES
    assert aws_limits.CONNECTION_GROUPS < aws_limits.TRANSACTION_ACTIONS
    assert MAX_SAMPLES <= aws_limits.METRIC_VALUES


def test_the_default_frame_is_metered_once() -> None:
    assert Settings().frame_bytes == aws_limits.FRAME_BYTES <= aws_limits.MESSAGE_BYTES


def test_the_deployment_has_the_same_time_outs() -> None:
    chalice: Any = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    assert chalice["lambda_timeout"] == aws_limits.FUNCTION_SECONDS


def test_the_local_gateway_has_the_same_limits() -> None:
    local = Configuration(variables={})
    assert local.integration_timeout == aws_limits.INTEGRATION_SECONDS
    assert local.idle_timeout == aws_limits.IDLE_SECONDS
    assert local.max_duration == aws_limits.CONNECTION_SECONDS
    assert sockets.MAX_MESSAGE_BYTES == aws_limits.MESSAGE_BYTES
    assert sockets.MAX_FRAME_BYTES == aws_limits.FRAME_BYTES
    assert uvicorn_server.MAX_HEADER_BYTES == aws_limits.HEADER_BYTES
    assert authorization.MAX_RESULT_CHARACTERS == aws_limits.AUTHORIZER_RESULT_BYTES
