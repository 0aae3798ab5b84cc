"""The consequences of a stage's part of `.chalice/config.json`."""

import json
from typing import Any

import pytest

from infra.cloudformation import DeploymentError
from infra.configuration import MAX_VARIABLE_BYTES, StageConfiguration
from infra.stage import FUNCTIONS, Stage

KEYS = json.dumps({"keys": [{"kty": "oct", "kid": "k", "k": "A" * 5000}]})
SHORT_KEYS = json.dumps({"keys": [{"kty": "oct", "kid": "k", "k": "A" * 43}]})
ENCRYPTING = {"api_handler", "websocket_message", "deliver_queued"}
VERIFYING = {"rest_authorizer", "connect_authorizer", "websocket_connect", "websocket_message"}


def configuration(chalice: dict[str, Any] | None = None, **variables: str) -> StageConfiguration:
    own = {"stages": {"dev": {"environment_variables": variables}}}
    return StageConfiguration(Stage("dev"), {"lambda_timeout": 30, **own, **(chalice or {})})


@pytest.mark.parametrize("window", [0, 1, 90, 300])
@pytest.mark.parametrize("timeout", [30, 60])
def test_the_queue_hides_a_job_for_six_time_outs_and_the_batching_window(
    window: int, timeout: int
) -> None:
    """https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html"""
    own = {"lambda_functions": {"deliver_queued": {"lambda_timeout": timeout}}}
    configured = configuration(own, HERALD_FANOUT_BATCH_SECONDS=str(window))
    queue = configured.resources["FanoutQueue"]["Properties"]
    assert queue["VisibilityTimeout"] == 6 * timeout + window


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_gets_only_the_secrets_that_it_needs(function: str) -> None:
    configured = configuration(
        HERALD_JWT_SECRET="s" * 32, HERALD_ENCRYPTION_KEYS=SHORT_KEYS, HERALD_MESSAGE_RATE="5"
    )
    names = set(configured.variables_of(function)) - {"HERALD_MESSAGE_RATE"}
    assert ("HERALD_ENCRYPTION_KEYS" in names) == (function in ENCRYPTING)
    assert ("HERALD_JWT_SECRET" in names) == (function in VERIFYING)
    assert "HERALD_MESSAGE_RATE" in configured.variables_of(function)


def test_the_arn_of_a_secret_is_given_to_the_functions_that_read_it() -> None:
    arn = "arn:aws:secretsmanager:us-east-1:000000000000:secret:a"
    configured = configuration(HERALD_ENCRYPTION_KEYS_ARN=arn)
    given = {one for one in FUNCTIONS if configured.variables_of(one)}
    assert given == ENCRYPTING
    assert configured.encryption_secret == arn


def test_a_functions_own_variables_are_added_to_the_stages() -> None:
    own = {
        "environment_variables": {"HERALD_MESSAGE_RATE": "5"},
        "lambda_functions": {"sweep": {"environment_variables": {"MORE": "1"}}},
    }
    configured = StageConfiguration(Stage("dev"), {"stages": {"dev": own}})
    assert configured.variables_of("sweep") == {"HERALD_MESSAGE_RATE": "5", "MORE": "1"}
    assert configured.variables_of("api_handler") == {"HERALD_MESSAGE_RATE": "5"}


def test_variables_that_lambda_would_refuse_are_refused_with_a_remedy() -> None:
    """Lambda measures all variables of a function as one JSON object.

    https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
    """
    with pytest.raises(DeploymentError) as refused:
        configuration(HERALD_ENCRYPTION_KEYS=KEYS).check()
    assert "the variables of api_handler have 5," in str(refused.value)
    assert "set HERALD_ENCRYPTION_KEYS_ARN instead" in str(refused.value)
    assert "AAAA" not in str(refused.value)
    with pytest.raises(DeploymentError, match="MORE is the longest: shorten it"):
        configuration(MORE="x" * MAX_VARIABLE_BYTES).check()


def test_variables_of_a_usual_size_are_accepted() -> None:
    configuration(HERALD_ENCRYPTION_KEYS=SHORT_KEYS, HERALD_JWT_SECRET="s" * 64).check()


def test_a_setting_that_functions_would_refuse_is_refused() -> None:
    with pytest.raises(DeploymentError, match="HERALD_MESSAGE_RATE holds 'fast'"):
        configuration(HERALD_MESSAGE_RATE="fast").check()
